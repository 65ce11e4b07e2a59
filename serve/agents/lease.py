"""How a participant keeps in touch with the controller: it pulls the desired state and reports what it made of it.

Nothing here is waited for by a request. While the controller is away a participant goes on with the last desired state.
"""

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Protocol

from serve.protocol.messages import Desired, StatusReport

logger = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS = 30.0
"""How long the first answer may take, before the controller has said how long a lease is."""
MAX_RETRY_SECONDS = 2.0
FAREWELL_SECONDS = 1.0


class ControllerLink(Protocol):
    """The way to the controller."""

    async def sync(self, report: StatusReport) -> Desired:
        """Renew the lease. Answers at once if the desired revision is not the one the report has
        seen, else after about a third of the lease. Raises anything if the controller is away."""
        ...


def new_participant(kind: str) -> str:
    """A unique id for this incarnation of a process."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


class Lease:
    """One participant's endless round of report and desired state."""

    def __init__(
        self,
        link: ControllerLink,
        report: Callable[[int, int], StatusReport],
        apply: Callable[[Desired], None],
        retry_seconds: float = 0.1,
    ) -> None:
        """`report(sequence, seen_revision)` makes the next report; `apply` brings a desired state
        about, or sees to it that it will be."""
        self._link = link
        self._report = report
        self._apply = apply
        self._retry = retry_seconds
        self._sequence = 0
        self._seen = 0
        self._refreshing = False
        """Whether an answer is under way that comes at once."""
        self._renewed = monotonic()
        self._news = asyncio.Event()
        self._round_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.desired: Desired | None = None

    @property
    def degraded(self) -> bool:
        """Whether the lease has run out, so that the desired state may have moved on."""
        if self.desired is None:
            return True
        return monotonic() - self._renewed > self.desired.lease_seconds

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="choir-lease")

    async def stop(self, farewell: StatusReport | None = None) -> None:
        """End the lease, with a last word if the controller can be reached."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if farewell is not None:
            with contextlib.suppress(Exception):  # the lease runs out by itself
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._link.sync(farewell)

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def report_now(self) -> None:
        """There is news: a round that waits for some ends now. One that is answered at once anyway goes on, and the
        next one tells."""
        self._news.set()

    async def refresh(self, seconds: float) -> bool:
        """Ask for the desired state now, or join those who have just asked; whether the controller answered within
        `seconds`."""
        ended = self._round_ended
        if not self._refreshing:
            self.report_now()
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        return True

    async def _keep(self) -> None:
        delay = self._retry
        while True:
            try:
                await self._round()
            except Exception as error:  # a link may raise whatever its transport does
                if delay == self._retry:
                    logger.warning(
                        "The controller does not answer (%s); going on with the last desired state.",
                        type(error).__name__,
                    )
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))
                delay = min(2 * delay, MAX_RETRY_SECONDS)
            else:
                delay = self._retry

    async def _round(self) -> None:
        """One report, and its answer. News cut short a round that waits for another state; one that began with news is
        answered at once, so that however many there are, the lease is renewed. Raises what the link raises, and
        TimeoutError when no answer comes for as long as the lease."""
        urgent = self._refreshing = self._news.is_set() or self._refreshing
        self._news.clear()
        sent = monotonic()
        report = self._report(self.next_sequence(), self._seen)
        report = replace(report, urgent=urgent)
        call = asyncio.create_task(self._call(report))
        news = asyncio.create_task(self._news.wait())
        patience = self.desired.lease_seconds if self.desired else FIRST_ANSWER_SECONDS
        try:
            awaited = {call} if urgent else {call, news}
            await asyncio.wait(awaited, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                self._accept(call.result(), sent)
            elif urgent or not news.done():
                raise TimeoutError
        finally:
            call.cancel()
            news.cancel()

    async def _call(self, report: StatusReport) -> Desired:
        return await self._link.sync(report)

    def _accept(self, desired: Desired, sent: float) -> None:
        """The lease counts from when the report was sent: the participant must never believe in
        its lease for longer than the controller does."""
        self._renewed = sent
        self.desired = desired
        self._apply(desired)
        self._seen = desired.revision
        self._refreshing = False
        ended, self._round_ended = self._round_ended, asyncio.Event()
        ended.set()
