"""The `choir` command. `choir COMMAND --help` lists the options of each subcommand."""

from typing import Annotated

import typer

from choir_cli import bundles, converting, data, improving, inference, serving, tokens, training
from choir_cli.batch.command import batch
from choir_cli.console import fail
from choir_cli.leaderboard.command import leaderboard
from choir_cli.leaderboard.distil import distil
from choir_cli.leaderboard.merge import merge
from choir_cli.operating import operations
from choir_cli.operating.backups import backup, restore
from choir_cli.operating.pruning import prune

app = typer.Typer(
    name="choir",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    data.bases,
    data.prepare,
    data.annotate,
    training.train,
    training.evaluate,
    leaderboard,
    merge,
    distil,
    improving.improve,
    improving.report,
    serving.serve,
    bundles.pack,
    converting.convert,
    bundles.verify,
    inference.predict,
    inference.chat,
    batch,
    operations.status,
    operations.swap,
    operations.rollback,
    operations.rollouts,
    operations.promote,
    operations.abort,
    prune,
    backup,
    restore,
    tokens.token,
):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"choir {metadata.version('choir-serve')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Many adapters, one voice: train, serve and operate ensembles of adapters."""


def run() -> None:
    """Run the `choir` script. Every failure ends as one sentence on stderr and a status other than 0."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        fail(error)


if __name__ == "__main__":
    run()
