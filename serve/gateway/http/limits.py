"""Limits on the inference requests that a gateway works on at once."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from serve import metrics
from serve.agents.routes import Target
from serve.errors import Refusal, RefusedError
from serve.gateway.http.errors import error_response


class InFlightLimit:
    """ASGI middleware that answers 429 while `most` requests to `paths` are in progress.

    Reads and admin requests are not counted, so that a full server can still be watched and
    changed."""

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
            metrics.request_refused("in_flight")
            full = Refusal(
                429, f"The gateway already works on {self._most} requests; try again later."
            )
            await error_response(full)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


class OnDemandShare:
    """Limits the requests that wait for ensembles on demand: to a quarter of the gateway's places for one such
    ensemble, and to half for all of them.

    The other places stay free for ensembles that are always loaded. Otherwise requests that wait for a load could take
    every place. One request for each ensemble may wait in any case, if the half is not taken."""

    def __init__(self, places: Callable[[str], int]) -> None:
        """`places`: how many member sequences the gateway may have in the engines of a pool now."""
        self._places = places
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def place(self, target: Target, members: int) -> Iterator[None]:
        """Hold a place of `members` sequences while an answer has not begun. Raises RefusedError (429) if none is
        free."""
        if not target.on_demand:
            yield
            return
        name, places = target.ensemble.name, self._places(target.pool)
        waiting, all_waiting = self._waiting[name], self._waiting.total()
        if waiting and waiting + members > places // 4:
            metrics.request_refused("on_demand")
            raise RefusedError(
                429,
                f"{name} is loaded on demand, and as many requests as may already wait for it; try again later.",
            )
        if all_waiting and all_waiting + members > places // 2:
            metrics.request_refused("on_demand")
            raise RefusedError(
                429,
                f"{name} is loaded on demand, and as many requests as may already wait for such ensembles; try again "
                "later.",
            )
        self._waiting[name] += members
        try:
            yield
        finally:
            self._waiting[name] -= members
            if not self._waiting[name]:
                del self._waiting[name]
