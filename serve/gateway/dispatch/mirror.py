"""Asks another version the same again, after the client has its answer, and compares the two."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from serve import metrics
from serve.agents.ledger import Ledger
from serve.agents.routes import Target
from serve.engine.interface import VERSION_NOT_LOADED, Refusal
from serve.gateway.http.observe import Exchange
from serve.gateway.links import Unavailable

logger = logging.getLogger(__name__)

LARGEST_BODY = 1_000_000
"""Bytes of a request that is asked again; what waits in the queue is held in memory."""

Ask = Callable[[Target], Coroutine[Any, Any, Any]]
"""Asks a version; the answer, or what has begun of a stream, or a Refusal."""
Compare = Callable[[Any], Coroutine[Any, Any, float | None]]
"""Reads an answer to its end; the share of it that equals the client's, or None if the two cannot be
compared."""


@dataclass(frozen=True)
class _Job:
    target: Target
    route: str
    ask: Ask
    compare: Compare

    @property
    def ensemble(self) -> str:
        return self.target.ensemble.name


class Mirror:
    """A bounded queue of requests to ask again, and the few workers that do. What does not fit is
    dropped and counted, so that no client waits for it and no engine is flooded by it."""

    def __init__(self, ledger: Ledger, *, queue: int, concurrency: int, seconds: float) -> None:
        """`seconds`: after which an answer is given up."""
        self._ledger = ledger
        self._most = queue
        self._concurrency = concurrency
        self._seconds = seconds
        self._waiting: deque[_Job] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    def after(
        self, exchange: Exchange, other: Target, route: str, ask: Ask, compare: Compare
    ) -> None:
        """Once the client has its answer, ask `other` as well."""
        job = _Job(other, route, ask, compare)
        exchange.afterwards(lambda: self._offer(job, exchange.body_bytes))

    def _offer(self, job: _Job, size: int) -> None:
        if len(self._waiting) >= self._most or size > LARGEST_BODY:
            assert job.target.trial is not None
            self._ledger.dropped(job.target.trial.attempt)
            metrics.shadow_dropped(job.ensemble)
            return
        self._waiting.append(job)
        if len(self._workers) < self._concurrency:
            worker = asyncio.create_task(self._work(), name="choir-mirror")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        """Until nothing waits."""
        while self._waiting:
            job = self._waiting.popleft()
            try:
                await self._ask_again(job)
            except (Unavailable, TimeoutError):
                pass  # it broke off after it had begun
            except Exception:  # nobody is sent this answer; the next one is asked all the same
                logger.exception("A request could not be asked again of %s.", job.target.key)

    async def _ask_again(self, job: _Job) -> None:
        trial = job.target.trial
        assert trial is not None
        began = perf_counter()
        answer = await self._begin(job)
        seconds = perf_counter() - began
        refused = isinstance(answer, Refusal)
        metrics.request_asked_again(job.ensemble, job.route, answer.status if refused else 200)
        if refused and answer.code == VERSION_NOT_LOADED:
            return  # a trial that has just ended, or an engine that has just begun
        if trial.strategy.kind == "shadow":
            # The active version has answered this request, so a refusal of any kind is an error.
            self._ledger.answered(trial.attempt, "candidate", seconds, failed=refused)
        if not refused:
            async with asyncio.timeout(self._seconds):
                agreement = await job.compare(answer)
            if agreement is not None:
                self._ledger.compared(trial.attempt, agreement)

    async def _begin(self, job: _Job) -> Any:
        """Like a client's request: once more when an engine dies, and given up when it takes too
        long."""
        try:
            async with asyncio.timeout(self._seconds):
                try:
                    return await job.ask(job.target)
                except Unavailable:
                    return await job.ask(job.target)
        except (Unavailable, TimeoutError) as error:
            return Refusal(503, str(error))


def asked_too(target: Target) -> Target | None:
    """Who is to be asked again after `target` has answered, if anybody. Of a canary, requests that
    the candidate has answered are compared; of a shadow, a share of those that the active version
    has."""
    trial = target.trial
    if trial is None or not trial.strategy.compares:
        return None
    canary = trial.strategy.kind == "canary"
    wanted = target.track == "canary" if canary else trial.takes(None)
    other = target.other_side() if wanted else None
    return None if other is None else replace(other, track="shadow")
