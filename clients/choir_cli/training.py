"""`choir train` and `choir evaluate`: write a bundle, train one of its members anew, and measure it."""

from pathlib import Path
from typing import Annotated

import typer

from choir_cli.console import UsageError, out
from serve.terminal.words import counted


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="The recipe: a YAML file, or the name of one that Choir brings, such as smollm2_chat."
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option("--out", metavar="BUNDLE", help="The folder to write the bundle to."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    member: Annotated[
        str | None,
        typer.Option(help="Train this member of a finished bundle anew, and nothing else."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="With --member: the finished bundle."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --member: train it on the rows of this file, instead of those of the recipe.",
        ),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(help="With --member: its ensemble, if several have a member of that name."),
    ] = None,
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
    """Run a recipe: train the members, fit the fusion and write a bundle. Or train one member of a bundle anew."""
    at_once = ray_address is not None or parallel is not None
    if member is not None or into is not None:
        if member is None or into is None:
            raise UsageError("--member NAME and --into BUNDLE belong together; give both.")
        if target is not None or at_once:
            raise UsageError(
                "--member trains one member into the bundle of --into; leave out --out, --parallel and --ray-address."
            )
    elif target is None:
        raise UsageError(
            "Say where the bundle goes with --out BUNDLE, or which member to train anew with --member NAME --into "
            "BUNDLE."
        )
    elif data is not None or ensemble is not None:
        raise UsageError(
            "--data and --ensemble are for --member; a bundle is trained on the rows that its recipe names."
        )
    from training.recipe import load_recipe
    from training.recipe.recipe import located

    recipe = located(recipe)
    # A wrong key is said before the imports of torch and others, which take seconds.
    load_recipe(recipe)
    if member is not None and into is not None:
        _retrain(recipe, member, into, data, ensemble, resume=resume)
        return
    assert target is not None, "checked above"
    from choir_cli.leaderboard.timer import EngineTimer
    from training.leaderboards import Boards
    from training.parallel.options import Parallel
    from training.pipeline import train as run

    trained_with = Parallel(ray_address, parallel) if at_once else None
    run(recipe, target, resume, trained_with, Boards(timed=None if no_timing else EngineTimer))


def _retrain(
    recipe: Path, member: str, into: Path, data: Path | None, ensemble: str | None, *, resume: bool
) -> None:
    from training.retraining.retrain import retrain

    found = retrain(recipe, member, into, data, ensemble, resume=resume)
    for figure in found.figures:
        out.say(figure.line())
    for folder in found.folders:
        out.verbatim(f"adapter: {folder}")
    if found.unchanged:
        out.say(
            f"It is the adapter that {found.member} has already: the same rows and recipe give the same. Change its "
            "seed or another key, or give newer rows with --data FILE."
        )
        return
    if found.wrong_golden:
        wrong = counted(len(found.wrong_golden), "golden input")
        out.say(
            f"With it the ensemble answers {wrong} otherwise, the first is {found.wrong_golden[0]!r}, so a server "
            "refuses the swap. Swap in a manifest without them (choir swap --manifest), or train another one."
        )
    out.verbatim(f"serve it: {found.swap}")


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File with the rows to use instead of the recipe's test split."),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="CLIP and SigLIP: how well the images of --data find the texts of this column, and they the images.",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Compare each member and each fusion method on the test rows."""
    from serve.bundle import Bundle

    if captions is not None and data is None:
        raise UsageError("--captions needs --data FILE, with the images and their captions.")

    # A wrong folder or name is said before the imports of torch and others, which take seconds.
    Bundle.open(bundle).ensemble(ensemble)
    if captions is not None and data is not None:
        from training.evaluation.retrieval import retrieve

        retrieve(bundle, ensemble, data, captions, json)
        return
    from training.evaluation.evaluation import evaluate_bundle

    evaluate_bundle(bundle, ensemble, data, json)
