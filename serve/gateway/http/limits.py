"""How many inference requests a gateway works on at once."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.agents.routes import Target
from serve.gateway.http.errors import error_response
from serve.refusal import Refusal, RefusedError


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


class OnDemandShare:
    """How many of a gateway's places may wait for ensembles that are loaded on demand: a quarter for one of them, half
    for all. The rest is left for those that are always loaded, whose requests would find all places taken while others
    wait for a load."""

    def __init__(self, most: int) -> None:
        """`most`: the gateway's places."""
        self._of_one = max(1, most // 4)
        self._of_all = max(1, most // 2)
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def place(self, target: Target) -> Iterator[None]:
        """Around the wait for an answer to begin. Raises RefusedError."""
        if not target.on_demand:
            yield
            return
        name = target.ensemble.name
        if self._waiting[name] >= self._of_one:
            raise RefusedError(
                429,
                f"{self._of_one} requests wait for {name} already, which is loaded on demand; try again later.",
            )
        if self._waiting.total() >= self._of_all:
            raise RefusedError(
                429,
                f"{name} is loaded on demand, and {self._of_all} requests wait for such ensembles already; try again "
                "later.",
            )
        self._waiting[name] += 1
        try:
            yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]
