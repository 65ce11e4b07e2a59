"""What one next step is: measured on the validation rows, or left out with a reason."""

from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from training.evaluation.metrics.resampling import Comparison, Metric
from training.improve.case import Case
from training.improve.judged import Judged

Area = Literal["fusion", "task", "data", "stages"]


class Gain(BaseModel):
    """A difference in the ensemble's criterion between two sets of answers to the same rows; above 0 is better."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    p: float
    """Two-sided, by the paired bootstrap."""


class Finding(BaseModel):
    """One measured step."""

    model_config = ConfigDict(frozen=True)

    area: Area
    step: str
    compared: str
    """What was compared, in a few words."""
    gain: Gain
    minutes: float | None
    """About how long it takes to do the step to the whole ensemble; None if that is not known."""
    spent: float = 0.0
    """How long the measuring took, in minutes."""


class Skipped(BaseModel):
    """A step that was not measured, and why."""

    model_config = ConfigDict(frozen=True)

    area: Area
    step: str
    reason: str


class Step(Protocol):
    """One next step that can be measured."""

    @property
    def area(self) -> Area:
        """What the step changes."""
        ...

    @property
    def name(self) -> str:
        """The step in a few words."""
        ...

    def measure(self, case: Case) -> Finding:
        """Measure the step. Raises Unmeasured with the reason if it cannot be, or not in the time that is left."""
        ...


def gain(judged: Judged, before: Metric, after: Metric) -> Gain:
    """Return how much better `after` is than `before`, on the same rows."""
    name = judged.criterion
    gap = Comparison([{name: before}, {name: after}], judged.rows).gap(name, 1, [0])
    sign = 1 if judged.higher_is_better else -1
    low, high = sorted((sign * gap.low, sign * gap.high))
    return Gain(value=sign * gap.value, low=low, high=high, p=gap.p)
