"""Sends answered requests to another version too, and compares the two answers."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serve import metrics
from serve.agents.ledger import Ledger
from serve.agents.routes import Target
from serve.errors import Refusal, RefusedError
from serve.gateway.dispatch.outcome import Answer, Ask, Outcomes
from serve.gateway.http.observe import Exchange
from serve.gateway.links import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_BODY = 1_000_000
"""The most bytes of a request that is sent again. Waiting requests are held in memory."""

UNANSWERED = (RefusedError, TimeoutError, Unavailable)
"""Failures of an answer that are counted, but need no stack trace in the log."""

Compare = Callable[[Answer[Any]], Coroutine[Any, Any, float | None]]
"""Reads an answer to its end. Returns the share of it that equals the client's answer, or None if the two cannot
be compared."""


@dataclass(frozen=True)
class _Job:
    target: Target
    route: str
    ask: Ask[Any]
    compare: Compare

    @property
    def ensemble(self) -> str:
        return self.target.ensemble.name


class Mirror:
    """A bounded queue of requests to send again, and a few workers that send them.

    Requests that do not fit are dropped and counted. So no client waits for the mirror, and it cannot
    flood the engines."""

    def __init__(
        self,
        ledger: Ledger,
        outcomes: Outcomes,
        *,
        queue: int,
        concurrency: int,
        seconds: float,
    ) -> None:
        """`seconds`: how long a worker waits for an answer to begin, and for each further part."""
        self._ledger = ledger
        self._outcomes = outcomes
        self._most = queue
        self._concurrency = concurrency
        self._seconds = seconds
        self._waiting: deque[_Job] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    def after(
        self, exchange: Exchange, other: Target, route: str, ask: Ask[Any], compare: Compare
    ) -> None:
        """Queue the request for `other`, once the client has its answer."""
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
        """Send the waiting requests until the queue is empty."""
        while self._waiting:
            job = self._waiting.popleft()
            try:
                await self._ask_again(job)
            except UNANSWERED as error:
                logger.info(
                    "%s did not answer a request that was sent again: %s", job.target.key, error
                )
            except Exception:  # no client waits for this answer; go on with the next request
                logger.exception("A request could not be sent again to %s.", job.target.key)

    async def _ask_again(self, job: _Job) -> None:
        try:
            answer = await self._outcomes.asked(
                job.target, job.ask, self._in_time, patience=self._seconds
            )
        except Exception as error:
            unavailable = isinstance(error, (Unavailable, TimeoutError))
            metrics.request_asked_again(job.ensemble, job.route, 503 if unavailable else 500)
            raise
        status = answer.status if isinstance(answer, Refusal) else 200
        metrics.request_asked_again(job.ensemble, job.route, status)
        if isinstance(answer, Refusal):
            return
        agreement = await job.compare(answer)
        if agreement is not None:
            trial = job.target.trial
            assert trial is not None
            self._ledger.compared(trial.attempt, agreement)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        async with asyncio.timeout(self._seconds):
            return await work


def asked_too(target: Target) -> Target | None:
    """Return the target that must answer a request too, after `target` has answered it; None if there is none.

    During a canary, these are the requests that the candidate has answered. During a shadow, they
    are a share of those that the active version has answered."""
    trial = target.trial
    if trial is None or not trial.strategy.compares:
        return None
    canary = trial.strategy.kind == "canary"
    wanted = target.track == "canary" if canary else trial.takes(None)
    other = target.other_side() if wanted else None
    return None if other is None else replace(other, track="shadow")
