"""The door of a gateway: it counts the requests inside, and lets no more in once the server stops."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import Refusal
from serve.gateway.http.errors import error_response

CLOSED = Refusal(503, "The server is stopping; ask again once it is back.", "stopping")


class Door:
    """Counts the requests that are inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.closed = False
        self._empty = asyncio.Event()

    def enter(self) -> None:
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        if self.inside == 0:
            self._empty.set()

    async def close(self, seconds: float) -> bool:
        """Let no request in any more, and wait until all have left. Returns whether they have within `seconds`."""
        self.closed = True
        if self.inside == 0:
            return True
        self._empty.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


class Doorkeeper:
    """ASGI middleware that answers 503 once the door is closed."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._door.enter()
        try:
            if self._door.closed:
                await error_response(CLOSED)(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._door.leave()
