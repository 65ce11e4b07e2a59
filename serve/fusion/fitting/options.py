"""What of a fusion is fitted on validation rows, and by what: as recipes say it, and as it is kept beside the rows."""

from typing import Literal

from pydantic import Field

from serve.fusion.labels.rules import Criterion
from serve.manifest import (
    METHODS,
    STACK_MODELS,
    Abstain,
    Contract,
    EarlyExit,
    Ensemble,
    FittedModel,
    Method,
    StackModel,
    Task,
)

FusionMethod = Literal["average", "weighted_average", "vote", "stack", "gate", "product", "mbr"]
ThresholdKind = Literal["common", "label", "none"]
CRITERIA: dict[Task, tuple[Criterion, ...]] = {
    "classification": ("log_loss", "accuracy"),
    "multilabel": ("log_loss", "micro_f1"),
    "regression": ("squared_error",),
}
"""What a task's fusion may be fitted by, the default first."""


class FusionOptions(Contract):
    """How members become one, and what is fitted on the validation rows."""

    method: FusionMethod | Literal["best"] = "best"
    """`best`: the candidate with the best cross-fitted validation score; for generation, `average`."""
    candidates: list[FusionMethod] | None = Field(None, min_length=1)
    """What `best` chooses among; default: all of the task's methods but `gate`."""
    criterion: Criterion | None = None
    """What the fit makes best. Classification: `log_loss` (default) or `accuracy`; multilabel: `log_loss` (default) or
    `micro_f1`; regression: `squared_error`."""
    weights: Literal["greedy", "accuracy"] = "greedy"
    """How weights are found: `greedy` selection (Caruana et al. 2004), or in proportion to `accuracy` (multilabel: to
    micro F1; regression: to the inverse squared error)."""
    space: Literal["probability", "log"] = "probability"
    """Averages are of probabilities, or of their logarithms (the normalised geometric mean)."""
    temperature: bool = True
    """Classification: fit one after pooling."""
    thresholds: ThresholdKind = "common"
    """Multilabel: one threshold for all labels with the best micro F1, one a label with its best F1, or 0.5."""
    stack: StackModel | None = None
    """The stacker's model; default: a regression."""
    top_k: int | None = Field(None, ge=1)
    """`gate`: how many members are asked about an input; default: all."""
    early_exit: EarlyExit | None = None
    """Classification: ask members one after another, and stop when their answer is safe. Needs an average or a vote."""
    abstain: Abstain | None = None
    """Classification: mark answers that are too uncertain."""
    folds: int = Field(5, ge=2)
    """Folds of the cross-fitted validation figures."""

    def methods(self, task: Task) -> tuple[Method, ...]:
        """The methods that are fitted: the candidates, and the one that was asked for."""
        asked = () if self.method == "best" else (self.method,)
        usual = [method for method in METHODS[task] if method != "gate"]
        return tuple(dict.fromkeys([*(self.candidates or usual), *asked]))

    def criterion_for(self, task: Task) -> Criterion:
        return self.criterion or CRITERIA[task][0]

    def stack_for(self, task: Task) -> StackModel:
        return self.stack or STACK_MODELS[task][0]

    def model_for(self, method: Method, task: Task) -> FittedModel | None:
        """The model of a method's fitted parameters; None for a method without a file of them."""
        if method == "gate":
            return "gate"
        return self.stack_for(task) if method == "stack" else None

    def as_served(self, ensemble: Ensemble) -> "FusionOptions":
        """The same for a manifest whose fusion is fitted again: what it has stays, whoever chose it."""
        spec = ensemble.fusion
        pools = spec.method in ("average", "weighted_average")
        return self.model_copy(
            update={
                "method": spec.method,
                "early_exit": spec.early_exit,
                "abstain": spec.abstain,
                "space": spec.space if pools else self.space,
                "stack": self.stack if spec.model in (None, "gate") else spec.model,
                "top_k": spec.top_k,
                "temperature": self.temperature or spec.temperature != 1,
                "thresholds": _kind(ensemble.thresholds)
                if self.thresholds == "none"
                else self.thresholds,
            }
        )


def _kind(thresholds: dict[str, float]) -> ThresholdKind:
    """What thresholds look like that no recipe asked for."""
    if not thresholds:
        return "none"
    return "common" if len(set(thresholds.values())) == 1 else "label"
