"""How the commands that talk to a server find it."""

from typing import Annotated

import typer

from choir_cli.console import UsageError
from choir_client import Choir

Url = Annotated[
    str | None, typer.Option(envvar="CHOIR_URL", help="The server; http://127.0.0.1:8000.")
]
Token = Annotated[
    str | None, typer.Option(envvar="CHOIR_TOKEN", help="An inference or admin token.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--ensemble",
        help="name, name@version or name/member; not needed where the server has one ensemble.",
    ),
]


def only_ensemble(choir: Choir) -> str:
    """The name of the server's one ensemble. Raises UsageError where a choice is needed."""
    names = [ensemble.name for ensemble in choir.ensembles()]
    if len(names) != 1:
        raise UsageError(f"Choose with --model, one of: {', '.join(names) or 'none is served'}.")
    return names[0]
