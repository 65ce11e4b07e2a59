"""How a version answers a request: the one place that decides whether it has failed, and counts it.

Clients' requests and those that are asked again pass through here alike, whatever their route. A version has failed
where the answer is an error of the server, whatever raised it; where the engine is gone or takes too long; and where a
stream breaks off after it has begun."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Generic, TypeAlias, TypeVar

from serve.agents.ledger import Ledger
from serve.agents.routes import Target
from serve.engine.interface import VERSION_NOT_LOADED
from serve.gateway.dispatch.transcript import DONE
from serve.gateway.http.errors import ClientGoneError
from serve.gateway.http.stream import Parts
from serve.gateway.links import Unavailable
from serve.protocol.figures import Side
from serve.refusal import Refusal, RefusedError

T = TypeVar("T")

PAUSES = (0.0, 0.1, 0.4, 1.0, 2.0)
"""Seconds before another engine is asked, each time that one is gone which has done nothing for the request. It may be
chosen again until it has ended."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a version has said, once it is known not to be a refusal."""

    said: T
    rest: Parts | None = None
    """What is still to come of a stream."""
    at: float = field(default_factory=perf_counter)
    """When it was said."""


Ask: TypeAlias = Callable[[Target], Coroutine[Any, Any, Answer[T] | Refusal]]
"""Asks some engine for the answer of a version. Raises whatever the way there does."""
Wait: TypeAlias = Callable[
    [Coroutine[Any, Any, Answer[T] | Refusal]], Coroutine[Any, Any, Answer[T] | Refusal]
]
"""Waits for what an engine is asked, for as long as whoever asks has patience."""


class Outcomes:
    """Asks versions, and counts how each has answered on its side of the trial that it takes part in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def asked(
        self, target: Target, ask: Ask[T], wait: Wait[T], patience: float | None = None
    ) -> Answer[T] | Refusal:
        """The answer of `target`. Another engine is asked when one is gone: once if it had begun,
        since the request may be what ended it.

        A stream is counted when it has ended; reading it raises what breaks it off, RefusedError
        for a refusal, and TimeoutError when no part comes for `patience` seconds. Raises
        Unavailable, ClientGoneError, and whatever `ask` and `wait` raise."""
        outcome = _Outcome(self._ledger, target)
        with outcome.deciding():
            answer = await _failing_over(lambda: wait(ask(target)))
        if isinstance(answer, Refusal):
            outcome.refused(answer)
            return answer
        outcome.said(answer.at)
        if answer.rest is None:
            outcome.end(failed=False)
            return answer
        return replace(answer, rest=_Counted(answer.rest, outcome, patience))


async def _failing_over(
    ask: Callable[[], Coroutine[Any, Any, Answer[T] | Refusal]],
) -> Answer[T] | Refusal:
    pauses = iter(PAUSES)
    begun = False
    while True:
        try:
            return await ask()
        except Unavailable as error:
            pause = 0.0 if error.begun else next(pauses, None)
            if pause is None or (begun and error.begun):
                raise
            begun |= error.begun
        await asyncio.sleep(pause)


class _Outcome:
    """Of one request to one version: counted once, or never where the client left before it was known."""

    def __init__(self, ledger: Ledger, target: Target) -> None:
        self._ledger = ledger
        self._target = target
        self._began = perf_counter()
        self._seconds: float | None = None
        self._ended = False

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Around the work for the answer: whatever it raises is a failure, unless the client has left."""
        try:
            yield
        except ClientGoneError:
            raise
        except Exception:
            self.end(failed=True)
            raise

    def said(self, at: float) -> None:
        """The answer has come, or its first part."""
        self._seconds = at - self._began

    def refused(self, refusal: Refusal) -> None:
        """An engine that lacks the version has not asked it. Of a request that another version has answered, any other
        refusal is a failure, and else those that are no client's fault."""
        again = self._target.track == "shadow"
        if refusal.code != VERSION_NOT_LOADED and (again or refusal.status >= 500):
            self.end(failed=True)

    def end(self, *, failed: bool) -> None:
        """It is known how the version has answered."""
        trial, side = self._target.trial, _side(self._target)
        if self._ended or trial is None or side is None:
            return
        self._ended = True
        seconds = perf_counter() - self._began if self._seconds is None else self._seconds
        self._ledger.answered(trial.attempt, side, seconds, failed=failed)


def _side(target: Target) -> Side | None:
    """On which side of its trial a version answers. The active version of a canary is asked again only to be compared
    with."""
    if target.trial is None:
        return None
    if target.track == "shadow":
        return "candidate" if target.trial.strategy.kind == "shadow" else None
    return "candidate" if target.track == "canary" else "stable"


class _Counted:
    """The rest of a stream, which decides how the version has answered. One that its reader leaves counts as nothing:
    whether it would have ended is not known."""

    def __init__(self, parts: Parts, outcome: _Outcome, patience: float | None) -> None:
        self._parts = parts
        self._outcome = outcome
        self._patience = patience

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._parts)
        with self._outcome.deciding():
            while True:
                async with asyncio.timeout(self._patience):
                    part = await anext(parts, None)
                if part is None:
                    break
                if isinstance(part, Refusal):
                    raise RefusedError.of(part)
                if part.rstrip().endswith(DONE):  # a client may leave as soon as it has this
                    self._outcome.end(failed=False)
                yield part
        self._outcome.end(failed=False)

    async def aclose(self) -> None:
        await self._parts.aclose()
