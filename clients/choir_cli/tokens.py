"""`choir token`: a new bearer token, for the settings of a server."""

from typing import Annotated

import typer

from choir_cli.console import UsageError, out


def token(
    name: Annotated[str, typer.Argument(help="Who or what holds it; the audit shows this name.")],
    role: Annotated[
        str, typer.Option(help="read (what runs), predict (that, and inference) or admin (all).")
    ] = "predict",
) -> None:
    """Make a token: the secret to hand out, and the line for `tokens` in the server's --config file."""
    from pydantic import ValidationError

    from serve.bearer import RESERVED, Token, hashed, new_secret
    from serve.manifest import explain

    if name in RESERVED:
        raise UsageError(
            f"The name {name!r} is reserved for a token without a name: choose another."
        )
    secret = new_secret()
    try:
        made = Token.model_validate({"name": name, "role": role, "sha256": hashed(secret)})
    except ValidationError as error:
        raise UsageError(f"{explain(error)}.") from error
    out.print(f"secret, shown only now: {secret}", soft_wrap=True, markup=False, highlight=False)
    out.print("in the config file, below tokens:", soft_wrap=True)
    line = f"  - {{name: {made.name}, role: {made.role}, sha256: {made.sha256}}}"
    out.print(line, soft_wrap=True, markup=False, highlight=False)
