"""The time that a client gives its request: the header `X-Request-Timeout`."""

import re

from fastapi import Request

from serve.errors import RefusedError
from serve.gateway.http.observe import exchange_of

TIMEOUT_HEADER = "x-request-timeout"
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
SHOWN = 50
"""The most characters of a wrong value that the error repeats."""


async def read_timeout(request: Request) -> None:
    """Note how long the request's answer may take, as a FastAPI dependency. Raises RefusedError (400)."""
    given = request.headers.get(TIMEOUT_HEADER)
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
