"""The options of the commands that talk to a server: its address, the token, the model."""

from typing import Annotated

import typer

from choir_cli.console import UsageError
from choir_client import Choir

Url = Annotated[
    str | None,
    typer.Option(
        envvar="CHOIR_URL", help="Address of the server.", show_default="http://127.0.0.1:8000"
    ),
]
Token = Annotated[
    str | None, typer.Option(envvar="CHOIR_TOKEN", help="Bearer token, if the server needs one.")
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--ensemble",
        help="NAME, NAME@VERSION or NAME/MEMBER. Needed if the server has more than one ensemble.",
    ),
]


def only_ensemble(choir: Choir) -> str:
    """Return the name of the server's only ensemble. Raises UsageError if it serves none or several."""
    names = [ensemble.name for ensemble in choir.ensembles()]
    if not names:
        raise UsageError(f"{choir.url} serves no ensemble.")
    if len(names) > 1:
        raise UsageError(
            f"The server has {len(names)} ensembles: choose one with --model, of {', '.join(names)}."
        )
    return names[0]
