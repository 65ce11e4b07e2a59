"""Steps of the data: more rows, and rows without suspected label errors."""

from dataclasses import dataclass

from training.data.cleaning.label_errors import suspected_label_errors
from training.data.steps import inputs_of
from training.improve.case import Case
from training.improve.judged import Unmeasured
from training.improve.step import Area, Finding, gain


@dataclass(frozen=True)
class MoreRows:
    """A learning curve of two points: what the second half of the rows has given to a member. As many rows again give
    less."""

    area: Area = "data"
    name: str = "more rows"

    def measure(self, case: Case) -> Finding:
        trials = case.trials
        half, whole = trials.half(), trials.splits.train
        before = trials.judged(half)
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"member {trials.member.name} on {len(whole)} rows with the same on {len(half)}; as many rows "
            "again give less than this",
            gain=gain(case.judged, before, case.judged.member(trials.member.name)),
            minutes=case.all_minutes,
        )


@dataclass(frozen=True)
class CleanerRows:
    """The training rows without those whose label is likely wrong (Northcutt et al. 2021)."""

    area: Area = "data"
    name: str = "leave suspected label errors out"

    def measure(self, case: Case) -> Finding:
        trials = case.trials
        if case.ensemble.task != "classification":
            raise Unmeasured("label errors are looked for where one label is right")
        rows, answer = trials.splits.train, trials.ensemble.answer
        if trials.recipe.data.images:
            raise Unmeasured("label errors are looked for by texts, and these rows are images")
        texts = inputs_of(rows, trials.recipe.data.inputs)
        doubts, _ = suspected_label_errors(texts, list(rows[answer]), trials.recipe.seed)
        if not doubts:
            raise Unmeasured("no label is suspected")
        doubted = {doubt.row for doubt in doubts}
        kept = rows.select([row for row in range(len(rows)) if row not in doubted])
        after = trials.judged(kept)
        return Finding(
            area=self.area,
            step=self.name,
            compared=f"member {trials.member.name} without {len(doubted)} suspected rows of {len(rows)}",
            gain=gain(case.judged, case.judged.member(trials.member.name), after),
            minutes=case.all_minutes,
        )
