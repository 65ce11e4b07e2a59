"""Learned stackers (Wolpert 1992): models over the members' outputs, fitted on held-out or out-of-fold predictions.

For labels, a stacker scores one label at a time from what the members say about that label, in at most 16 features. So
two labels and a thousand run the same code, and the cost grows with the number of labels alone.
"""

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
"""The file name of each model's fitted parameters in a bundle."""


def stack_of(model: StackModel) -> type[Stack]:
    """Returns the class that fits and reads `model`."""
    return BoostingStack if model == "gradient_boosting" else LinearStack


def read_stack(file: Path, model: StackModel) -> Stack:
    """Returns the fitted stacker in `file`. Raises FusionError if the file does not hold one of `model`."""
    return stack_of(model).read(file)
