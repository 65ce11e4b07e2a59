"""Makes the leaderboard from the metrics of all rungs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.fusion.parameters import Parameters
from serve.manifest import Ensemble
from training.evaluation.metrics.resampling import Comparison, Metric
from training.leaderboard.board import Behind, Leaderboard, Rung, RungKind
from training.leaderboard.criteria import LOWER_IS_BETTER
from training.leaderboard.recommendation import Candidate, Choice


@dataclass(frozen=True)
class Entry:
    """One rung: what serves it, and the metrics of its answers."""

    name: str
    kind: RungKind
    passes: float
    manifest: Ensemble
    """Fitted on all validation rows."""
    parameters: Parameters | None
    validation: Mapping[str, Metric]
    """Of cross-fitted answers to the validation rows."""
    judged: Mapping[str, Metric]
    """Of served answers to the judged rows; the same as `validation` where no other rows are judged."""

    @property
    def title(self) -> str:
        """What sentences call the rung."""
        return f"member {self.manifest.members[0].name}" if self.kind == "single" else self.name


@dataclass(frozen=True)
class Counts:
    """How many rows there are."""

    validation: int
    judged: int


def judge(
    ensemble: str,
    entries: Sequence[Entry],
    counts: Counts,
    by: tuple[str, str],
    milliseconds: Mapping[str, float],
) -> Leaderboard:
    """Return the leaderboard. `by` are the metrics that rungs are compared by, and `milliseconds` the measured times by
    the rungs' names."""
    candidates = [
        Candidate(
            each.name,
            each.title,
            each.kind,
            each.passes,
            milliseconds.get(each.name),
            each.validation,
        )
        for each in entries
    ]
    found = Choice(candidates, counts.validation, by).recommendation()
    compared = Comparison([each.judged for each in entries], counts.judged)
    whole = np.ones((1, counts.validation))
    best = next(n for n, each in enumerate(entries) if each.name == found.best)
    rungs = []
    for number, each in enumerate(entries):
        intervals = {name: compared.interval(number, name) for name in each.judged}
        rungs.append(
            Rung(
                name=each.name,
                kind=each.kind,
                passes=round(each.passes, 4),
                milliseconds=milliseconds.get(each.name),
                scores={name: interval.value for name, interval in intervals.items()},
                intervals={
                    name: (interval.low, interval.high) for name, interval in intervals.items()
                },
                validation={
                    name: float(metric(whole)[0]) for name, metric in each.validation.items()
                },
                behind_best=_behind(compared, entries, number, best, by[0]),
            )
        )
    return Leaderboard(
        ensemble=ensemble,
        metric=by[0],
        rows=counts.judged,
        recommended=found.recommended,
        reason=found.reason,
        rungs=rungs,
    )


def _behind(
    compared: Comparison, entries: Sequence[Entry], number: int, best: int, metric: str
) -> Behind | None:
    if metric not in entries[number].judged:
        return None
    if number == best:
        return Behind(difference=0.0, interval=(0.0, 0.0), p=1.0)
    gap = compared.gap(metric, number, [best])
    if metric in LOWER_IS_BETTER:
        return Behind(difference=gap.value, interval=(gap.low, gap.high), p=gap.p)
    return Behind(difference=-gap.value, interval=(-gap.high, -gap.low), p=gap.p)
