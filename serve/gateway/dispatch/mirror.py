"""Asks another version the same again, after the client has its answer, and compares the two."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serve import metrics
from serve.agents.ledger import Ledger
from serve.agents.routes import Target
from serve.gateway.dispatch.outcome import Answer, Ask, Outcomes
from serve.gateway.http.observe import Exchange
from serve.gateway.links import Unavailable
from serve.refusal import Refusal, RefusedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_BODY = 1_000_000
"""Bytes of a request that is asked again; what waits in the queue is held in memory."""

UNANSWERED = (RefusedError, TimeoutError, Unavailable)
"""How an answer can fail that is counted and needs no stack trace."""

Compare = Callable[[Answer[Any]], Coroutine[Any, Any, float | None]]
"""Reads an answer to its end; the share of it that equals the client's, or None if the two cannot be
compared."""


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
    """A bounded queue of requests to ask again, and the few workers that do. What does not fit is
    dropped and counted, so that no client waits for it and no engine is flooded by it."""

    def __init__(
        self,
        ledger: Ledger,
        outcomes: Outcomes,
        *,
        queue: int,
        concurrency: int,
        seconds: float,
    ) -> None:
        """`seconds`: after which an answer that has not begun, or that has stopped coming, is given up."""
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
            except UNANSWERED as error:
                logger.info("%s did not answer what was asked again: %s", job.target.key, error)
            except Exception:  # nobody is sent this answer; the next one is asked all the same
                logger.exception("A request could not be asked again of %s.", job.target.key)

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
