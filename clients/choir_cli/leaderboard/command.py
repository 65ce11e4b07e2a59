"""`choir leaderboard`: every rung that can be served, with quality and cost, and which one to serve."""

from pathlib import Path
from typing import Annotated

import typer

from choir_cli.console import out


def leaderboard(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File with the rows to judge on instead of the recipe's test split."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the leaderboard to this file.")
    ] = None,
    no_timing: Annotated[
        bool,
        typer.Option("--no-timing", help="Start no engine, and measure no request."),
    ] = False,
) -> None:
    """Compare everything that can be served for an ensemble, and recommend what to serve."""
    from contextlib import nullcontext, suppress

    from choir_cli.leaderboard.timer import EngineTimer
    from serve.bundle import Bundle
    from serve.files import write_atomically
    from training.execution.progress_table import ProgressTable
    from training.leaderboard.leaderboard import Judging
    from training.leaderboard.table import show_board
    from training.progress import quiet_libraries
    from training.report.write import ReportError, draw_page

    quiet_libraries()
    opened = Bundle.open(bundle)
    with ProgressTable() as progress_table:
        judging = Judging(opened, ensemble, progress_table)
        with nullcontext() if no_timing else EngineTimer(opened, ensemble) as timer:
            board = judging.leaderboard(data, timer)
    with suppress(ReportError):  # a bundle that no training made has no report
        draw_page(opened)
    show_board(board, bundle, out)
    if timer is not None and timer.problem is not None:
        typer.echo(timer.problem, err=True)
    if json is not None:
        write_atomically(json, board.model_dump_json(indent=2) + "\n")
