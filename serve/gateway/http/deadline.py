"""The time that a client gives its request: the header `X-Request-Timeout`."""

import re
from typing import Annotated

from fastapi import Header, Request

from serve.errors import RefusedError
from serve.gateway.http.observe import exchange_of

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
SHOWN = 50
"""The most characters of a wrong value that the error repeats."""


async def read_timeout(
    request: Request,
    given: Annotated[
        str | None,
        Header(
            alias="X-Request-Timeout",
            description="Seconds until the whole answer; afterwards the request is ended with a 504.",
        ),
    ] = None,
) -> None:
    """Note how long the request's answer may take, as a FastAPI dependency. Raises RefusedError (400)."""
    if given is None:
        return
    seconds = float(given) if _NUMBER.fullmatch(given) else 0
    if not seconds:
        raise RefusedError(
            400,
            f"X-Request-Timeout must be a number of seconds above 0, such as 2.5, not {given[:SHOWN]!r}.",
            param="X-Request-Timeout",
        )
    exchange_of(request).timeout = seconds
