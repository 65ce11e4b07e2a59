"""The leaderboard as it is written to `report/leaderboard-NAME.json`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

RungKind = Literal["member", "single", "rival", "merged", "soup", "distilled", "fusion"]
"""What a rung is: one member; the best member as validation chooses it (`single`); one adapter with the ranks of all
members together, trained on all rows (`rival`); members merged into one adapter by a method of PEFT (`merged`) or as a
soup; one adapter distilled from the ensemble; or a fusion method of all members."""


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Behind(_Figures):
    """How far a rung is behind the best rung, on the same rows."""

    difference: float
    """In the leaderboard's metric. Above 0, the rung is worse, whichever way the metric goes. Below 0, it is better on
    these rows than the best rung, which was chosen on the validation rows."""
    interval: tuple[float, float]
    """The middle 95% of the paired bootstrap distribution of the difference."""
    p: float
    """The two-sided p-value of the paired bootstrap; 1 for the best rung itself."""


class Rung(_Figures):
    """One thing that can be served under the ensemble's name."""

    name: str
    """The file `rungs/ENSEMBLE/NAME.json` in the bundle is the manifest that serves it."""
    kind: RungKind
    passes: float
    """Forward passes through the base for one answer: the members that are asked, in the mean if that depends on the
    input."""
    milliseconds: float | None
    """Median time of a request with one input in this machine's engine; None if it was not measured."""
    scores: dict[str, float]
    """Metric -> its figure on the judged rows."""
    intervals: dict[str, tuple[float, float]]
    """Metric -> the middle 95% of its bootstrap distribution."""
    validation: dict[str, float]
    """Metric -> its cross-fitted figure on the validation rows, from which the recommendation is made."""
    behind_best: Behind | None
    """None for a rung without the leaderboard's metric: a vote has no log loss."""


class Leaderboard(_Figures):
    """The rungs of one ensemble, and which of them to serve."""

    ensemble: str
    """The ensemble's name."""
    metric: str
    """The metric that the fusion is fitted by, such as `log_loss`. Rungs are compared by it."""
    rows: int
    """Number of the judged rows."""
    recommended: str
    """The name of a rung."""
    reason: str
    """One sentence."""
    rungs: list[Rung]

    def rung(self, name: str) -> Rung:
        """Return the rung with that name. Raises KeyError if there is none."""
        found = {rung.name: rung for rung in self.rungs}
        return found[name]


def board_file(bundle: Path, ensemble: str) -> Path:
    """Return the place of an ensemble's leaderboard in its bundle."""
    return bundle / "report" / f"leaderboard-{ensemble}.json"


def read_board(bundle: Path, ensemble: str) -> Leaderboard | None:
    """Return an ensemble's leaderboard; None if it was not made yet."""
    file = board_file(bundle, ensemble)
    return Leaderboard.model_validate_json(file.read_bytes()) if file.is_file() else None
