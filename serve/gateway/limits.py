"""How many inference requests a gateway works on at once."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.engine.interface import Refusal
from serve.gateway.errors import error_response


class InFlightLimit:
    """ASGI middleware: one request to `paths` more than `most` at once is a 429.

    Reads and admin requests are not counted, so that a full server can still be watched and
    steered."""

    def __init__(self, app: ASGIApp, paths: Collection[str], most: int) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._most = most
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            full = Refusal(
                429, f"The server works on {self._most} requests already; try again later."
            )
            await error_response(full)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
