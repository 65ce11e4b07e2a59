"""The report of an evaluation: the figures of members, fusion methods and baselines, and the differences between
them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.evaluation.metrics.resampling import Comparison, Metric

ScoreKind = Literal["member", "fusion", "baseline", "stage"]


@dataclass(frozen=True)
class System:
    """A member, fusion method or baseline, with the metrics of its answers."""

    name: str
    kind: ScoreKind
    metrics: Mapping[str, Metric]
    served: bool = False
    """Whether this is the fusion method in the ensemble's manifest."""
    passes: float | None = None
    """Forward passes for one answer in the mean; None for as many as there are members."""


class Row(BaseModel):
    """The figures of one member, fusion method, baseline or chain of stages."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: ScoreKind
    passes: int | float
    """Forward passes through the base for one answer, in the mean."""
    served: bool
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    """The middle 95% of each figure's bootstrap distribution."""


class Difference(BaseModel):
    """The difference between a fusion method and others in one metric, with the middle 95% of its paired bootstrap
    distribution."""

    model_config = ConfigDict(frozen=True)

    name: str
    over: str
    """`best member (b)`, `mean member`, or a baseline's name."""
    metric: str
    value: float
    low: float
    high: float
    p: float
    """The two-sided p-value of the paired bootstrap: how likely so large a difference is by chance."""


class EvaluationReport(BaseModel):
    """The figures of one ensemble's members, fusion methods and baselines on one set of rows."""

    model_config = ConfigDict(frozen=True)

    ensemble: str
    """`name@version`."""
    data: str
    count: int
    rows: list[Row]
    differences: list[Difference] = []
    signatures: dict[str, str] = {}
    """sacrebleu's signatures of the metrics it computed."""

    def best_member(self, score: str) -> float:
        """Return the highest `score` among the members."""
        return max(row.scores[score] for row in self.rows if row.kind == "member")

    def member(self, name: str) -> Row:
        """Return the row of a member."""
        return next(row for row in self.rows if (row.kind, row.name) == ("member", name))

    def served(self) -> Row:
        """Return the row of the fusion method in the manifest."""
        return next(row for row in self.rows if row.served)


def compare(
    ensemble: str,
    data: str,
    count: int,
    systems: Sequence[System],
    main: str,
    signatures: Mapping[str, str] | None = None,
) -> EvaluationReport:
    """Compute the figures of all `systems` on the same `count` rows. `main` is the metric of the differences (higher is
    better)."""
    compared = Comparison([system.metrics for system in systems], count)
    members = sum(system.kind == "member" for system in systems)
    passes = {"member": 1, "fusion": members, "baseline": 0}
    rows = []
    for number, system in enumerate(systems):
        intervals = {name: compared.interval(number, name) for name in system.metrics}
        rows.append(
            Row(
                name=system.name,
                kind=system.kind,
                passes=passes[system.kind] if system.passes is None else round(system.passes, 4),
                served=system.served,
                scores={name: found.value for name, found in intervals.items()},
                intervals={name: (found.low, found.high) for name, found in intervals.items()},
            )
        )
    return EvaluationReport(
        ensemble=ensemble,
        data=data,
        count=count,
        rows=rows,
        differences=_differences(compared, systems, main),
        signatures=dict(signatures or {}),
    )


def _differences(compared: Comparison, systems: Sequence[System], main: str) -> list[Difference]:
    """Compare each fusion method with the best member, the members' mean and each baseline."""
    kinds = [system.kind for system in systems]
    members = [number for number, kind in enumerate(kinds) if kind == "member"]
    best = max(members, key=lambda number: compared.scores[number][main])
    others = {f"best member ({systems[best].name})": [best], "mean member": members}
    others |= {s.name: [number] for number, s in enumerate(systems) if s.kind == "baseline"}
    found = []
    for number, system in enumerate(systems):
        if system.kind != "fusion":
            continue
        for over, against in others.items():
            gap = compared.gap(main, number, against)
            found.append(
                Difference(
                    name=system.name,
                    over=over,
                    metric=main,
                    value=gap.value,
                    low=gap.low,
                    high=gap.high,
                    p=gap.p,
                )
            )
    return found
