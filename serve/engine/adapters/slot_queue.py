"""Who runs in the engine's adapter slots, where more adapters are loaded than there are slots.

vLLM swaps adapters between host memory and slots by itself, but lets whoever runs go on and others wait: requests for
adapters that are always busy would keep the rest out for ever. So requests are let in by turns.

Which versions are loaded at all is another question (`serve/protocol/capacity.py`)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

TURN_SECONDS = 1.0
"""How long requests for adapters that run already go on being let in while others wait for slots."""


@dataclass
class _Waiting:
    """Requests for the same adapters, which are let in together."""

    first_since: float | None = None
    """When they became those that wait longest; None before."""
    requests: list[asyncio.Future[None]] = field(default_factory=list)


class SlotQueue:
    """Lets requests in so that no more distinct adapters run than there are slots.

    Those that have waited longest are next. Until they have their slots, requests for what already runs may still pass
    them, for one turn; then what runs comes to its end, and they are let in."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running: Counter[str] = Counter()
        self._waiting: dict[frozenset[str], _Waiting] = {}

    @asynccontextmanager
    async def turn(self, adapters: frozenset[str]) -> AsyncIterator[None]:
        """Around a request that needs all of `adapters` in slots at once, at most as many as there are."""
        if self._may_run(adapters):
            self._running.update(adapters)
        else:
            await self._wait(adapters)
        try:
            yield
        finally:
            self._leave(adapters)

    def _may_run(self, adapters: frozenset[str]) -> bool:
        if not adapters:  # it takes nothing that anybody waits for
            return True
        first = next(iter(self._waiting.values()), None)
        if first is None:
            return self._fit(adapters)
        assert first.first_since is not None, "whoever is first knows since when"
        return adapters <= self._running.keys() and monotonic() < first.first_since + TURN_SECONDS

    def _fit(self, adapters: frozenset[str]) -> bool:
        return len(adapters | self._running.keys()) <= self._slots

    async def _wait(self, adapters: frozenset[str]) -> None:
        """Returns once the adapters count as running."""
        waiting = self._waiting.setdefault(adapters, _Waiting())
        request: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.requests.append(request)
        self._advance()
        try:
            await request
        except asyncio.CancelledError:
            if not request.cancelled():  # it was let in at the same moment
                self._leave(adapters)
            elif request in waiting.requests:
                waiting.requests.remove(request)
                if not waiting.requests:
                    del self._waiting[adapters]
                    self._advance()
            raise

    def _leave(self, adapters: frozenset[str]) -> None:
        self._running -= Counter(adapters)
        self._advance()

    def _advance(self) -> None:
        """Let in those that wait longest, as far as they fit."""
        while self._waiting:
            adapters, first = next(iter(self._waiting.items()))
            if not self._fit(adapters):
                if first.first_since is None:
                    first.first_since = monotonic()
                return
            del self._waiting[adapters]
            for request in first.requests:
                if not request.cancelled():
                    self._running.update(adapters)
                    request.set_result(None)
            first.requests.clear()
