"""A search for the values of a member's keys, by trials on rows held out for them."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from serve.manifest import Task
from training.recipe.stages import DistillationStage, StageRecipe
from training.recipe.values import Strict

Scalar = bool | int | float | str
Values = Mapping[str, Scalar]
Direction = Literal["min", "max"]

METRICS: dict[Task, dict[str, Direction]] = {
    "classification": {"log_loss": "min", "accuracy": "max", "macro_f1": "max", "ece": "min"},
    "multilabel": {"log_loss": "min", "micro_f1": "max", "macro_f1": "max"},
    "regression": {"rmse": "min", "mae": "min", "spearman": "max", "pearson": "max"},
    "generation": {"bleu": "max", "chrf": "max", "rougeL": "max", "token_f1": "max"},
}
"""What trials of a task may be judged by, the default first."""


class RangeRecipe(Strict):
    """What is tried for one key: a list of values, or numbers from one to another; exactly one kind."""

    log: tuple[float, float] | None = None
    """Evenly over the logarithms."""
    uniform: tuple[float, float] | None = None
    """Evenly from the lowest to the highest."""
    integer: tuple[int, int] | None = None
    """Whole numbers, both ends among them."""
    values: list[Scalar] | None = Field(None, min_length=2)
    """These values; a plain list means the same."""

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, data: Any) -> Any:
        return {"values": data} if isinstance(data, list) else data

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        given = [key for key in type(self).model_fields if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "give a list of values, or exactly one of log, uniform and integer (given: "
                f"{', '.join(given) or 'none'})"
            )
        if self.values is None:
            low, high = self._ends()
            if low >= high:
                raise ValueError(f"the range must go up, not from {low:g} to {high:g}")
            if self.log is not None and low <= 0:
                raise ValueError(f"a log range starts over 0, not at {low:g}")
        return self

    def samples(self) -> list[Scalar]:
        """Each value of a list; of a range both ends and a number between them that is hardly a whole one."""
        if self.values is not None:
            return self.values
        low, high = self._ends()
        return [low, high, *([] if self.integer else [low + 0.3819 * (high - low)])]

    def _ends(self) -> tuple[float, float]:
        return next(ends for ends in (self.log, self.uniform, self.integer) if ends is not None)


class SearchRecipe(Strict):
    """What is tried, how often, and by which figure it is judged."""

    trials: int = Field(12, ge=2)
    """How often values are drawn and tried."""
    space: dict[str, RangeRecipe] = Field(min_length=1)
    """Keys of the member's stage, each with a range or a list of values."""
    metric: str | None = None
    """Default: the first of the task's."""
    method: Literal["random", "tpe"] = "random"
    """`tpe` (Bergstra et al. 2011; Optuna) goes where earlier trials were good."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the training rows that trials are judged on, and not trained on."""

    def metric_for(self, task: Task) -> str:
        return self.metric or next(iter(METRICS[task]))

    def check(self, task: Task, stages: list[StageRecipe]) -> None:
        """Raises ValueError for a metric that `task` lacks, and for values that a stage refuses."""
        if self.metric_for(task) not in METRICS[task]:
            raise ValueError(
                f"search: trials of {task} are judged by {', '.join(METRICS[task])}, not by {self.metric}"
            )
        for stage in stages:
            for key, tried in self.space.items():
                for value in tried.samples():
                    with_values(stage, {key: value})


def with_values(stage: StageRecipe, values: Values) -> StageRecipe:
    """The stage with these values of its keys. Raises ValueError for those it cannot have."""
    known = set(type(stage).model_fields) - {"kind"}
    kind = getattr(stage, "kind", "")
    for key in values:
        if key not in known:
            raise ValueError(
                f"search: {key} is no key of the kind {kind}, which has {', '.join(sorted(known))}"
            )
    own: dict[str, Any] = stage.model_dump(exclude_unset=True)
    try:
        return type(stage).model_validate({**own, **values})
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        tried = ", ".join(f"{key} {value!r}" for key, value in values.items())
        raise ValueError(f"search: {tried} cannot be tried: {said}") from None


def searchable(stages: list[StageRecipe]) -> StageRecipe:
    """The only stage, whose keys are searched. Raises ValueError for a member of several."""
    if len(stages) != 1 or isinstance(stages[0], DistillationStage):
        raise ValueError(
            "search is for members of one stage; search that one first and write what it found into the chain"
        )
    return stages[0]
