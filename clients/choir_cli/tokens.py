"""`choir token`: a new bearer token for a server."""

from enum import StrEnum
from typing import Annotated

import typer

from choir_cli.console import UsageError, out


class RoleChoice(StrEnum):
    read = "read"
    predict = "predict"
    admin = "admin"


def token(
    name: Annotated[
        str, typer.Argument(help="Name of the holder. The audit and error messages show it.")
    ],
    role: Annotated[
        RoleChoice,
        typer.Option(
            metavar="NAME", help="read: status only. predict: also inference. admin: also changes."
        ),
    ] = RoleChoice.predict,
) -> None:
    """Make a bearer token. Prints its secret, and the line for `tokens` in the file of `choir serve --config`."""
    from pydantic import ValidationError

    from serve.bearer import RESERVED, Token, hashed, new_secret

    if name in RESERVED:
        raise UsageError(
            f"The name {name!r} is reserved for the tokens that have no name: choose another."
        )
    secret = new_secret()
    try:
        made = Token.model_validate({"name": name, "role": role.value, "sha256": hashed(secret)})
    except ValidationError as error:
        raise UsageError(
            f"{name!r} cannot be the name of a token: use small letters, digits, '.', '_' and '-', "
            "a letter or a digit first, and at most 63 characters."
        ) from error
    out.verbatim(f"secret, shown only this once: {secret}")
    out.say("line for the config file, below `tokens:`")
    line = f"  - {{name: {made.name}, role: {made.role}, sha256: {made.sha256}}}"
    out.verbatim(line)
