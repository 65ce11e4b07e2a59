"""How members become one, and what is fitted for it."""

from typing import Literal, get_args

from pydantic import Field

from serve.fusion.rules import Criterion
from serve.manifest import METHODS, STACK_MODELS, Method, StackModel, Task
from training.recipe.values import Strict

FusionMethod = Literal["average", "weighted_average", "vote", "stack", "product"]
GenerationMethod = Literal["average", "product", "vote"]
GENERATION_METHODS: tuple[GenerationMethod, ...] = get_args(GenerationMethod)
"""`average` and `product` at every token, `vote` over whole answers."""
CRITERIA: dict[Task, tuple[Criterion, ...]] = {
    "classification": ("log_loss", "accuracy"),
    "multilabel": ("log_loss", "micro_f1"),
    "regression": ("squared_error",),
}
"""What a task's fusion may be fitted by, the default first."""


class FusionRecipe(Strict):
    """How members become one, and what is fitted on the validation rows."""

    method: FusionMethod | Literal["best"] = "best"
    """`best`: the candidate with the best cross-fitted validation score; for generation, `average`."""
    candidates: list[FusionMethod] | None = Field(None, min_length=1)
    """Default: all of the task's."""
    criterion: Criterion | None = None
    weights: Literal["greedy", "accuracy"] = "greedy"
    space: Literal["probability", "log"] = "probability"
    temperature: bool = True
    """Classification: fit one after pooling."""
    thresholds: Literal["common", "label", "none"] = "common"
    """Multilabel: one threshold for all labels with the best micro F1, one a label with its best F1, or 0.5."""
    stack: StackModel | None = None
    """The stacker's model; default: a regression."""
    folds: int = Field(5, ge=2)

    def methods(self, task: Task) -> tuple[Method, ...]:
        """The methods that are fitted: the candidates, and the one that was asked for."""
        asked = () if self.method == "best" else (self.method,)
        return tuple(dict.fromkeys([*(self.candidates or METHODS[task]), *asked]))

    def criterion_for(self, task: Task) -> Criterion:
        return self.criterion or CRITERIA[task][0]

    def stack_for(self, task: Task) -> StackModel:
        return self.stack or STACK_MODELS[task][0]

    def check(self, task: Task) -> None:
        """Raises ValueError for what `task` cannot be fused by."""
        if task == "generation":
            if self.method not in ("best", *GENERATION_METHODS):
                raise ValueError(
                    f"generation is fused by {', '.join(GENERATION_METHODS)}, not by {self.method}"
                )
            return
        if self.method == "product":
            raise ValueError(f"product is for generation; for {task} use `space: log`")
        strange = [method for method in self.methods(task) if method not in METHODS[task]]
        if strange:
            raise ValueError(f"{task} is fused by {', '.join(METHODS[task])}, not by {strange[0]}")
        if self.criterion not in (None, *CRITERIA[task]):
            raise ValueError(
                f"the criterion of {task} is {' or '.join(CRITERIA[task])}, not {self.criterion}"
            )
        if self.stack not in (None, *STACK_MODELS[task]):
            raise ValueError(
                f"{task} is stacked by {' or '.join(STACK_MODELS[task])}, not by {self.stack}"
            )
        if self.space == "log" and task == "regression":
            raise ValueError("`space: log` is for probabilities, not for the values of regression")
