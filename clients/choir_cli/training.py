"""`choir train` and `choir evaluate`: what happens before serving."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The bundle to write.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="Train members at once on this Ray cluster. Several machines need a shared file system.",
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="At most so many members at once; without --ray-address, on this machine.",
        ),
    ] = None,
) -> None:
    """Run a recipe: train the members, fit the fusion, write a bundle."""
    from training.parallel.options import Parallel
    from training.pipeline import train as run

    asked = ray_address is not None or parallel is not None
    at_once = Parallel(ray_address, parallel) if asked else None
    run(recipe, out, resume, at_once)


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    data: Annotated[
        Path | None, typer.Option(help="Rows to use instead of the recipe's test split.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Compare the members and every fusion method, side by side."""
    from training.evaluation.evaluation import evaluate_bundle

    evaluate_bundle(bundle, ensemble, data, json)
