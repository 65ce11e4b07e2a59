"""The leaderboard in the terminal: a table of 80 columns, the recommendation, and the next command."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from training.evaluation.tables import HEADINGS, PERCENT
from training.leaderboard.board import Leaderboard, Rung
from training.leaderboard.rungs import rung_path

_COLUMNS = ("log_loss", "accuracy", "micro_f1", "ece", "rmse", "spearman", "bleu", "chrf")
"""The figures in the terminal; the JSON and the report's page have all figures."""
_MOST = 3


def show_board(board: Leaderboard, bundle: Path, console: Console) -> None:
    """Print the leaderboard of the bundle at `bundle`."""
    console.print(board_table(board))
    for line in board_lines(board, bundle):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def board_table(board: Leaderboard) -> Table:
    """Return the table of the rungs. The recommended one is bold."""
    names = _figures(board)
    title = f"{board.ensemble}: {board.rows:,} rows (bold: recommended)"
    shown = Table(title=title, box=box.SIMPLE, padding=0, pad_edge=False, show_edge=False)
    shown.add_column("rung", overflow="fold")
    shown.add_column("kind")
    shown.add_column("passes", justify="right")
    if any(rung.milliseconds is not None for rung in board.rungs):
        shown.add_column("ms", justify="right")
    for name in names:
        shown.add_column(HEADINGS[name], justify="right")
    shown.add_column("behind", justify="right")
    shown.add_column("p", justify="right")
    for rung in board.rungs:
        cells = [rung.name, rung.kind, f"{rung.passes:g}"]
        if len(shown.columns) > len(names) + 5:
            cells.append("" if rung.milliseconds is None else f"{rung.milliseconds:.1f}")
        cells += [_cell(rung, name) for name in names]
        gap = rung.behind_best
        cells += (
            ["", ""] if gap is None else [_number(gap.difference, board.metric, "+"), _p(gap.p)]
        )
        shown.add_row(*cells, style="bold" if rung.name == board.recommended else None)
    return shown


def board_lines(board: Leaderboard, bundle: Path) -> list[str]:
    """Return the recommendation, its reason, and the command that serves it."""
    file = rung_path(bundle, board.ensemble, board.recommended)
    return [
        f"Serve {board.recommended}. {board.reason}",
        f"choir swap {board.ensemble} --manifest {file}",
    ]


def _figures(board: Leaderboard) -> list[str]:
    found = {name for rung in board.rungs for name in rung.scores}
    if "accuracy" in found:
        found.discard("micro_f1")
    order = [board.metric, *(name for name in _COLUMNS if name != board.metric)]
    return [name for name in order if name in found][:_MOST]


def _cell(rung: Rung, name: str) -> str:
    return _number(rung.scores[name], name) if name in rung.scores else ""


def _number(value: float, name: str, sign: str = "") -> str:
    return f"{value:{sign}.{2 if name in PERCENT else 4}f}"


def _p(p: float) -> str:
    return f"{p:.3f}"
