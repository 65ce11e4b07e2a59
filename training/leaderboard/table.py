"""The leaderboard in the terminal: a table of 80 columns, the recommendation, and the next command."""

from pathlib import Path

from serve.terminal.screen import Screen
from serve.terminal.sheet import Sheet, whole
from serve.terminal.sheet import number as column
from serve.terminal.words import counted
from training.evaluation.tables import HEADINGS, number
from training.leaderboard.board import Leaderboard, Rung
from training.leaderboard.rungs import rung_path

_COLUMNS = ("log_loss", "accuracy", "micro_f1", "ece", "rmse", "spearman", "bleu", "chrf")
"""The figures in the terminal; the JSON and the report's page have all figures."""
_MOST = 3
"""Figures beside each other, if there is room."""


def show_board(board: Leaderboard, bundle: Path, screen: Screen) -> None:
    """Print the leaderboard of the bundle at `bundle`."""
    tables = [board_table(board, figures) for figures in range(_MOST, 0, -1)]
    screen.print(next((each for each in tables if each.fits(screen.width)), tables[-1]))
    screen.print()
    *sentences, command = board_lines(board, bundle)
    for sentence in sentences:
        screen.say(sentence)
    screen.verbatim(command)


def board_table(board: Leaderboard, figures: int = _MOST) -> Sheet:
    """Return the table of the rungs, with at most so many figures. The recommended rung has a star."""
    names = _figures(board)[:figures]
    timed = any(rung.milliseconds is not None for rung in board.rungs)
    columns = [whole("rung"), whole("kind"), column("passes"), *([column("ms")] if timed else [])]
    columns += [*(column(HEADINGS[name]) for name in names), column("behind"), column("p")]
    shown = Sheet(f"{board.ensemble}: {counted(board.rows, 'row')} (*: recommended)", columns)
    for rung in board.rungs:
        chosen = rung.name == board.recommended
        gap = rung.behind_best
        shown.add_row(
            f"{rung.name}{'*' if chosen else ''}",
            rung.kind,
            f"{rung.passes:.3g}",
            *([_milliseconds(rung)] if timed else []),
            *(_cell(rung, name) for name in names),
            None if gap is None else number(gap.difference, board.metric, "+"),
            None if gap is None else f"{gap.p:.3f}",
            marked=chosen,
        )
    return shown


def board_lines(board: Leaderboard, bundle: Path) -> list[str]:
    """Return the recommendation, its reason, and the command that serves it."""
    file = rung_path(bundle, board.ensemble, board.recommended)
    return [
        f"Serve {board.recommended}. {board.reason}",
        *_abstaining(board),
        f"choir swap {board.ensemble} --manifest {file}",
    ]


def _abstaining(board: Leaderboard) -> list[str]:
    """Return what abstaining would leave of the recommended rung's answers, in a sentence; nothing for another task."""
    scores = board.rung(board.recommended).scores
    if "coverage" not in scores:
        return []
    if not scores["coverage"]:
        return [
            "There are too few validation rows to promise the risk of abstaining: with `abstain`, it would answer "
            "nothing."
        ]
    return [
        f"With abstaining, it gives {scores['coverage']:.1%} of its answers, of which {scores['risk']:.2%} are wrong."
    ]


def _figures(board: Leaderboard) -> list[str]:
    found = {name for rung in board.rungs for name in rung.scores}
    if "accuracy" in found:
        found.discard("micro_f1")
    order = [board.metric, *(name for name in _COLUMNS if name != board.metric)]
    return [name for name in order if name in found]


def _cell(rung: Rung, name: str) -> str:
    return number(rung.scores[name], name) if name in rung.scores else ""


def _milliseconds(rung: Rung) -> str:
    return "" if rung.milliseconds is None else f"{rung.milliseconds:.0f}"
