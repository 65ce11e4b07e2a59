"""Which rung to serve: the cheapest one that is not significantly worse than the best, by validation rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.metrics.resampling import Comparison, Metric
from training.evaluation.tables import HEADINGS, PERCENT
from training.leaderboard.board import RungKind
from training.leaderboard.criteria import LOWER_IS_BETTER, behind

SIGNIFICANT = 0.1
"""A rung is significantly worse if it is behind and the two-sided p of the paired bootstrap is below this. Whether one
rung is worse than another is a question of one side, so this is a test at 5%."""
SAME_COST = 1.1
"""Times of a request within this factor count as equal: one engine's medians differ by as much from run to run."""
_PLAIN: tuple[RungKind, ...] = (
    "single",
    "member",
    "rival",
    "distilled",
    "soup",
    "merged",
    "fusion",
)
"""Of rungs that are equal in cost and quality, the first kind is the least to keep up."""


@dataclass(frozen=True)
class Candidate:
    """A rung as the recommendation sees it."""

    name: str
    title: str
    """What sentences call it."""
    kind: RungKind
    passes: float
    milliseconds: float | None
    metrics: Mapping[str, Metric]
    """Of cross-fitted answers to the validation rows."""


@dataclass(frozen=True)
class Recommendation:
    """The recommended rung and the best one by name, and a sentence."""

    recommended: str
    best: str
    reason: str


class Choice:
    """Compares rungs on the validation rows."""

    def __init__(self, candidates: Sequence[Candidate], rows: int, by: tuple[str, str]) -> None:
        """`by` are the metric that rungs are compared by, and the second one in which none may be worse.

        A member that nobody chose is no candidate: `single` stands for them, and its figures count how it was
        chosen."""
        self._rungs = [
            each for each in candidates if each.kind != "member" and by[0] in each.metrics
        ]
        self._rows = rows
        self._by = by
        judged = [
            {name: metric for name, metric in each.metrics.items() if name in by}
            for each in self._rungs
        ]
        self._compared = Comparison(judged, rows)

    def recommendation(self) -> Recommendation:
        """Return the rung to serve, with the reason."""
        best = min(range(len(self._rungs)), key=self._loss)
        single = next(n for n, each in enumerate(self._rungs) if each.kind == "single")
        sound = [
            n
            for n in range(len(self._rungs))
            if not self._worse(n, best) and (n == single or not self._worse(n, single))
        ]
        # The best rung is in `sound` unless its second metric is worse than the best member's.
        chosen = self._cheapest(sound) if sound else single
        return Recommendation(
            self._rungs[chosen].name, self._rungs[best].name, self._reason(chosen, best, single)
        )

    def _cheapest(self, rungs: Sequence[int]) -> int:
        passes = min(self._rungs[n].passes for n in rungs)
        cheap = [n for n in rungs if self._rungs[n].passes <= passes + 1e-9]
        times = [t for n in cheap if (t := self._rungs[n].milliseconds) is not None]
        if len(times) == len(cheap):
            least = min(times)
            cheap = [n for n in cheap if (self._rungs[n].milliseconds or 0) <= SAME_COST * least]
        return min(cheap, key=lambda n: (self._loss(n), _PLAIN.index(self._rungs[n].kind)))

    def _loss(self, rung: int) -> float:
        metric = self._by[0]
        return behind(metric, self._compared.scores[rung][metric], 0.0)

    def _worse(self, rung: int, than: int) -> bool:
        """Return whether a rung is significantly worse than another one in either metric."""
        return any(gap.behind > 0 and gap.p < SIGNIFICANT for gap in self._gaps(rung, than))

    def _gaps(self, rung: int, than: int) -> list["_Gap"]:
        """Return how far a rung is behind another one in each of the two metrics that both have."""
        if rung == than:
            return []
        scores = self._compared.scores
        return [
            _Gap(
                metric,
                behind(metric, scores[rung][metric], scores[than][metric]),
                self._compared.gap(metric, rung, [than]).p,
            )
            for metric in self._by
            if metric in scores[rung] and metric in scores[than]
        ]

    def _reason(self, chosen: int, best: int, single: int) -> str:
        title, best_title = self._rungs[chosen].title, self._rungs[best].title
        rows = f"on {self._rows:,} validation rows"
        if chosen == single == best:
            return f"Do not ensemble: {rows}, no rung is better than {title}."
        if chosen == single:
            return (
                f"Do not ensemble: {rows}, {title} is not significantly worse than the best rung, {best_title} "
                f"({self._clearest(chosen, best)})."
            )
        lead = f"{rows[0].upper()}{rows[1:]}, {title} is "
        if chosen == best:
            lead += "the best rung"
        else:
            lead += (
                f"not significantly worse than the best rung, {best_title} "
                f"({self._clearest(chosen, best)})"
            )
        if self._worse(single, best):
            return (
                f"{lead}; the best member, chosen for each part of the rows on the others, is worse "
                f"({self._clearest(single, best)})."
            )
        return f"{lead}; it costs no more than {self._rungs[single].title}, the best member."

    def _clearest(self, rung: int, than: int) -> str:
        """Return the difference with the lowest p among those in which `rung` is behind, as text."""
        gap = min(self._gaps(rung, than), key=lambda each: (each.behind <= 0, each.p))
        value = -gap.behind if gap.metric not in LOWER_IS_BETTER else gap.behind
        digits = 2 if gap.metric in PERCENT else 4
        return f"{value:+.{digits}f} {HEADINGS[gap.metric]}, p = {gap.p:.3f}"


@dataclass(frozen=True)
class _Gap:
    metric: str
    behind: float
    p: float
