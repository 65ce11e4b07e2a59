"""The `choir` command. `choir COMMAND --help` lists the options of each subcommand."""

import typer

from choir_cli import bundles, data, improving, inference, operations, serving, tokens, training
from choir_cli.console import fail

app = typer.Typer(
    name="choir",
    help="Many adapters, one voice: train, serve and operate ensembles of adapters.",
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
    improving.improve,
    improving.report,
    serving.serve,
    bundles.pack,
    bundles.verify,
    inference.predict,
    inference.chat,
    operations.status,
    operations.swap,
    operations.rollback,
    operations.rollouts,
    operations.promote,
    operations.abort,
    tokens.token,
):
    app.command()(command)


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
