"""The leaderboard as a plot of quality against cost."""

import statistics
from collections.abc import Sequence

from training.evaluation.tables import HEADINGS
from training.leaderboard.board import Leaderboard, Rung, RungKind
from training.report.axis import Axis
from training.report.chart import Chart, Mark

LOWER_IS_BETTER = ("log_loss", "squared_error", "ece", "rmse", "mae")
KINDS: dict[RungKind, int] = {
    "member": 1,
    "single": 1,
    "rival": 2,
    "merged": 3,
    "soup": 4,
    "distilled": 5,
    "fusion": 0,
}
"""The colour of each kind."""
FAR = 5.0
"""A rung that is this many times as far from the best as the middle one is would press all others together."""


def board_chart(board: Leaderboard) -> Chart | None:
    """Return quality against cost, one numbered mark for each rung, in the board's order; None if no rung has the
    board's metric."""
    shown = [
        (number, rung) for number, rung in enumerate(board.rungs, 1) if board.metric in rung.scores
    ]
    if not shown:
        return None
    rungs = [rung for _, rung in shown]
    timed = all(rung.milliseconds for rung in rungs)
    cost = "milliseconds a request" if timed else "passes through the base a request"
    lower = board.metric in LOWER_IS_BETTER
    heading = HEADINGS.get(board.metric, board.metric.replace("_", " "))
    far = _far([rung.scores[board.metric] for rung in rungs], lower=lower)
    marks = [
        Mark(
            number,
            f"{rung.name} ({rung.kind})",
            _cost(rung, timed=timed),
            rung.scores[board.metric],
            *rung.intervals.get(board.metric, (rung.scores[board.metric],) * 2),
            colour=KINDS[rung.kind],
            chosen=rung.name == board.recommended,
        )
        for number, rung in shown
    ]
    near = [mark for mark, away in zip(marks, far, strict=True) if not away]
    quality = Axis.over(heading, [end for mark in near for end in (mark.low, mark.high)])
    beyond = [str(mark.number) for mark in marks if not quality.low <= mark.y <= quality.high]
    notes = ["Marks that would lie on each other stand side by side."]
    if beyond:
        notes.append(f"Far worse, at the edge: {', '.join(beyond)}.")
    return Chart(
        "Quality against cost",
        f"{heading} on {board.rows} rows ({'lower' if lower else 'higher'} is better) with its interval. The ring "
        "marks what is recommended; the numbers are those of the table.",
        Axis.costs(cost, [mark.x for mark in marks]),
        quality,
        marks=marks,
        note=" ".join(notes),
    )


def _cost(rung: Rung, *, timed: bool) -> float:
    return float(rung.milliseconds or 0) if timed else float(rung.passes)


def _far(values: Sequence[float], *, lower: bool) -> list[bool]:
    """Return which values are far worse than the best, in distances of the middle one."""
    best = min(values) if lower else max(values)
    away = [abs(value - best) for value in values]
    middle = statistics.median(away)
    return [middle > 0 and each > FAR * middle for each in away]
