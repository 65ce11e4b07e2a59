"""Asks a version, decides whether it failed, and counts the outcome.

All requests pass through here: those of clients and those that the mirror sends again, on every route. A version has
failed if the answer is a server error, if the engine is gone or takes too long, or if a stream breaks off after its
first part."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Generic, TypeAlias, TypeVar

from serve.agents.ledger import Ledger
from serve.agents.routes import Target
from serve.engine.interface import DEADLINE, VERSION_NOT_LOADED
from serve.errors import Refusal, RefusedError
from serve.gateway.dispatch.transcript import DONE
from serve.gateway.http.errors import ClientGoneError
from serve.gateway.http.stream import Parts
from serve.gateway.links import Unavailable
from serve.protocol.figures import Side

T = TypeVar("T")

PAUSES = (0.0, 0.1, 0.4, 1.0, 2.0)
"""Seconds before each further attempt, after an engine went away before it began to work on the request. Ray may
choose the same engine again until it has noticed its end."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The answer of a version that is not a refusal."""

    said: T
    """The whole answer, or the first part of a stream."""
    rest: Parts | None = None
    """The further parts of a stream; None for a whole answer."""
    at: float = field(default_factory=perf_counter)
    """The time at which `said` arrived (`perf_counter`)."""


Ask: TypeAlias = Callable[[Target], Coroutine[Any, Any, Answer[T] | Refusal]]
"""Asks one of the engines for the answer of a version. Raises what the link to it raises."""
Wait: TypeAlias = Callable[
    [Coroutine[Any, Any, Answer[T] | Refusal]], Coroutine[Any, Any, Answer[T] | Refusal]
]
"""Waits for an engine's answer; the caller decides for how long."""


class Outcomes:
    """Asks versions, and counts the outcomes of those that take part in a trial."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def asked(
        self, target: Target, ask: Ask[T], wait: Wait[T], patience: float | None = None
    ) -> Answer[T] | Refusal:
        """Return the answer of `target`.

        If an engine is gone, another one is asked. If the engine had begun to work on the request, that
        happens only once, because the request may have crashed it.

        A stream is counted when it has ended. Reading its rest raises the exception that breaks it off:
        RefusedError for a refusal, TimeoutError if no part arrives for `patience` seconds. Raises
        Unavailable, ClientGoneError, and what `ask` and `wait` raise."""
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
    """The outcome of one request to one version. It is counted once; never, if the client left before it was known."""

    def __init__(self, ledger: Ledger, target: Target) -> None:
        self._ledger = ledger
        self._target = target
        self._began = perf_counter()
        self._seconds: float | None = None
        self._ended = False

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Wrap the work for the answer: every exception counts as a failure, unless the client has left or its time is
        over."""
        try:
            yield
        except ClientGoneError:
            raise
        except Exception as error:
            late = isinstance(error, RefusedError) and error.refusal.code == DEADLINE.code
            if not late:
                self.end(failed=True)
            raise

    def said(self, at: float) -> None:
        """Note that the answer, or its first part, arrived at the time `at`."""
        self._seconds = at - self._began

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal as a failure if the version is at fault.

        The version is not at fault if the engine lacks it, or if the client's time is over. It is at fault if another
        version has answered the same request, or if the status is 500 or more."""
        again = self._target.track == "shadow"
        if refusal.code in (VERSION_NOT_LOADED, DEADLINE.code):
            return
        if again or refusal.status >= 500:
            self.end(failed=True)

    def end(self, *, failed: bool) -> None:
        """Count the outcome, unless it is counted already or the version takes part in no trial."""
        trial, side = self._target.trial, _side(self._target)
        if self._ended or trial is None or side is None:
            return
        self._ended = True
        seconds = perf_counter() - self._began if self._seconds is None else self._seconds
        self._ledger.answered(trial.attempt, side, seconds, failed=failed)


def _side(target: Target) -> Side | None:
    """Return the side of the trial on which the answer counts, or None.

    During a canary, the mirror asks the active version only for comparison: that answer counts on no side."""
    if target.trial is None:
        return None
    if target.track == "shadow":
        return "candidate" if target.trial.strategy.kind == "shadow" else None
    return "candidate" if target.track == "canary" else "stable"


class _Counted:
    """The rest of a stream, which counts the outcome when it ends.

    A stream that its reader leaves is not counted: nobody knows how it would have ended."""

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
                # A client may leave as soon as it has the last event.
                if part.rstrip().endswith(DONE):
                    self._outcome.end(failed=False)
                yield part
        self._outcome.end(failed=False)

    async def aclose(self) -> None:
        await self._parts.aclose()
