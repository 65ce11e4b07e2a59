"""`choir train` and `choir evaluate`: write a bundle, and measure it."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The folder to write the bundle to.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="Train members in parallel on this Ray cluster. Several machines need a shared file system.",
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train up to this many members in parallel: on this machine, or with --ray-address on its cluster.",
        ),
    ] = None,
    no_timing: Annotated[
        bool,
        typer.Option(
            "--no-timing",
            help="Measure no requests for the leaderboard at the end: start no engine.",
        ),
    ] = False,
) -> None:
    """Run a recipe: train the members, fit the fusion and write a bundle."""
    from choir_cli.leaderboard.timer import EngineTimer
    from training.leaderboards import Boards
    from training.parallel.options import Parallel
    from training.pipeline import train as run

    asked = ray_address is not None or parallel is not None
    at_once = Parallel(ray_address, parallel) if asked else None
    run(recipe, out, resume, at_once, Boards(timed=None if no_timing else EngineTimer))


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File with the rows to use instead of the recipe's test split."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Compare each member and each fusion method on the test rows."""
    from training.evaluation.evaluation import evaluate_bundle

    evaluate_bundle(bundle, ensemble, data, json)
