"""The recipe's part on searches for the values of members' keys."""

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
"""The metrics by which trials of a task can be judged, the default first, and whether low or high is good."""


class RangeRecipe(Strict):
    """The values that are tried for one key: a list, or a range of numbers. Give exactly one of the keys."""

    log: tuple[float, float] | None = None
    """A range whose logarithms are drawn evenly."""
    uniform: tuple[float, float] | None = None
    """A range whose numbers are drawn evenly."""
    integer: tuple[int, int] | None = None
    """A range of whole numbers, with both ends."""
    values: list[Scalar] | None = Field(None, min_length=2)
    """A list of values. A plain list in place of the mapping means the same."""

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
                raise ValueError(f"a log range starts above 0, not at {low:g}")
        return self

    def samples(self) -> list[Scalar]:
        """Return values to check: all values of a list, or both ends of a range and a fraction between them."""
        if self.values is not None:
            return self.values
        low, high = self._ends()
        return [low, high, *([] if self.integer else [low + 0.3819 * (high - low)])]

    def _ends(self) -> tuple[float, float]:
        return next(ends for ends in (self.log, self.uniform, self.integer) if ends is not None)


class SearchRecipe(Strict):
    """A search: which values are tried, how often, and by which metric they are judged."""

    trials: int = Field(12, ge=2)
    """Number of trials. Each trial draws values and trains with them."""
    space: dict[str, RangeRecipe] = Field(min_length=1)
    """Keys of the member's stage, each with a range or a list of values."""
    metric: str | None = None
    """Metric of the trials; default: `log_loss` for classification and multilabel, `rmse` for regression, `bleu` for
    generation."""
    method: Literal["random", "tpe"] = "random"
    """`random` draws independently. `tpe` (Bergstra et al. 2011; Optuna) draws near the values of good trials."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the training rows that trials are judged on instead of trained on."""

    def metric_for(self, task: Task) -> str:
        """Return the metric of trials of `task`."""
        return self.metric or next(iter(METRICS[task]))

    def check(self, task: Task, stages: list[StageRecipe]) -> None:
        """Check the metric and the values. Raises ValueError if `task` lacks the metric, or a stage refuses a value."""
        if self.metric_for(task) not in METRICS[task]:
            raise ValueError(
                f"search: trials of {task} are judged by {', '.join(METRICS[task])}, not by {self.metric}"
            )
        for stage in stages:
            for key, tried in self.space.items():
                for value in tried.samples():
                    with_values(stage, {key: value})


def with_values(stage: StageRecipe, values: Values) -> StageRecipe:
    """Return the stage with these values of its keys. Raises ValueError if the stage cannot have one of them."""
    known = set(type(stage).model_fields) - {"kind"}
    kind = getattr(stage, "kind", "")
    for key in values:
        if key not in known:
            raise ValueError(
                f"search: {key} is not a key of the kind {kind}, which has {', '.join(sorted(known))}"
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
    """Return a member's only stage, whose keys can be searched. Raises ValueError if it has several stages."""
    if len(stages) != 1 or isinstance(stages[0], DistillationStage):
        raise ValueError(
            "search is for members of one stage; search for that stage first, and write the found values into the chain"
        )
    return stages[0]
