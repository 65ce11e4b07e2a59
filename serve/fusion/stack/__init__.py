"""Learned stackers (Wolpert 1992): models over what the members say, fitted on held-out or out-of-fold predictions.

For labels, a stacker scores one label at a time from what the members say about that very label, in at most 16
features: so two labels and a thousand run the same code and cost the same a label."""

from pathlib import Path

from serve.fusion.stack.boosting import BoostingStack
from serve.fusion.stack.linear import LinearStack
from serve.fusion.stack.stacker import MAX_BYTES, FittedOn, Stack
from serve.manifest import StackModel

__all__ = [
    "MAX_BYTES",
    "STACK_FILES",
    "BoostingStack",
    "FittedOn",
    "LinearStack",
    "Stack",
    "read_stack",
    "stack_of",
]

STACK_FILES: dict[StackModel, str] = {
    "logistic_regression": "stack.json",
    "linear_regression": "stack.json",
    "gradient_boosting": "stack.txt",
}
"""How a bundle names the fitted parameters of each model."""


def stack_of(model: StackModel) -> type[Stack]:
    """The stacker that fits and reads `model`."""
    return BoostingStack if model == "gradient_boosting" else LinearStack


def read_stack(file: Path, model: StackModel) -> Stack:
    """A fitted stacker. Raises FusionError for a file that does not hold one of `model`."""
    return stack_of(model).read(file)
