"""Steps of the stages: one value of a member's stage is changed, in a small trial on half of the rows."""

from dataclasses import dataclass
from typing import Literal

from training.improve.case import Case
from training.improve.judged import Unmeasured
from training.improve.step import Area, Finding, gain
from training.recipe import RecipeError


@dataclass(frozen=True)
class Changed:
    """One value of the stage times a factor."""

    key: Literal["learning_rate", "epochs", "rank"]
    factor: float
    area: Area = "stages"

    @property
    def name(self) -> str:
        return f"{self.key.replace('_', ' ')} times {self.factor:g}"

    def measure(self, case: Case) -> Finding:
        trials = case.trials
        [stage] = trials.member.stages
        old = getattr(stage, self.key, None)
        if old is None:
            raise Unmeasured(f"a stage of the kind {stage.kind} has no {self.key}")
        new = type(old)(old * self.factor)
        if new < 1 and isinstance(old, int):
            raise Unmeasured(f"{self.key} is {old} and cannot be less")
        values: dict[str, float] = {self.key: new}
        if self.key == "rank" and (alpha := getattr(stage, "alpha", None)):
            # The scaling alpha / rank stays, so that only the rank changes.
            values["alpha"] = alpha * self.factor
        try:
            changed = trials.member.with_values(values)
        except ValueError as error:
            raise Unmeasured(str(error)) from error
        half = trials.half()
        before = trials.judged(half)
        try:
            after = trials.judged(half, changed)
        except RecipeError as error:
            raise Unmeasured(str(error)) from error
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"member {trials.member.name} on half of the rows: {old:g} and {new:g}",
            gain=gain(case.judged, before, after),
            minutes=self._minutes(case),
        )

    def _minutes(self, case: Case) -> float | None:
        whole = case.all_minutes
        return whole * self.factor if whole is not None and self.key == "epochs" else whole
