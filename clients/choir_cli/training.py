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
) -> None:
    """Run a recipe: train the members, fit the fusion, write a bundle."""
    from training.pipeline import train as run

    run(recipe, out, resume)


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    data: Annotated[
        Path | None, typer.Option(help="Rows to use instead of the recipe's test split.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Compare the members and every fusion method, side by side."""
    from training.evaluation import evaluate_bundle

    evaluate_bundle(bundle, ensemble, data, json)
