"""How a participant keeps in touch with the controller: it pulls the desired state, and reports what it has done.

No request waits for this. While the controller is away, a participant goes on with the last desired state.
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
"""How long the first answer may take. Later answers may take as long as the lease, which the first one tells."""
MAX_RETRY_SECONDS = 2.0
"""The longest pause between two attempts to reach the controller."""
FAREWELL_SECONDS = 1.0
"""How long the last report may take."""


class ControllerLink(Protocol):
    """The connection to the controller."""

    async def sync(self, report: StatusReport) -> Desired:
        """Renew the lease, and return the desired state.

        The controller answers at once if its revision differs from the report's, else after about a third of the
        lease. May raise any exception if the controller is away."""
        ...


def new_participant(kind: str) -> str:
    """Return a unique id for this process."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


class Lease:
    """Sends the reports of one participant, one after the other, and applies each desired state that comes back."""

    def __init__(
        self,
        link: ControllerLink,
        report: Callable[[int, int], StatusReport],
        apply: Callable[[Desired], None],
        retry_seconds: float = 0.1,
    ) -> None:
        """`report(sequence, seen_revision)` returns the next report. `apply` takes a new desired state, and returns at
        once; work that takes longer goes on in the background. `retry_seconds` is the first pause after a failure."""
        self._link = link
        self._report = report
        self._apply = apply
        self._retry = retry_seconds
        self._sequence = 0
        self._seen = 0
        self._refreshing = False
        """Whether a report is under way that the controller answers at once."""
        self._renewed = monotonic()
        self._news = asyncio.Event()
        self._round_ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.desired: Desired | None = None

    @property
    def degraded(self) -> bool:
        """Whether the lease has run out, so that the desired state may be old."""
        if self.desired is None:
            return True
        return monotonic() - self._renewed > self.desired.lease_seconds

    def start(self) -> None:
        """Begin to report, in a task of its own."""
        self._task = asyncio.create_task(self._keep(), name="choir-lease")

    async def stop(self, farewell: StatusReport | None = None) -> None:
        """End the lease. Send `farewell` as the last report if the controller can be reached."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if farewell is not None:
            with contextlib.suppress(Exception):  # without it, the lease runs out by itself
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._link.sync(farewell)

    def next_sequence(self) -> int:
        """Return the number of the next report."""
        self._sequence += 1
        return self._sequence

    def report_now(self) -> None:
        """Send a report now, because there is news.

        A report that waits for a new revision is cut short. One that the controller answers at once anyway is not; then
        the next one brings the news."""
        self._news.set()

    async def refresh(self, seconds: float) -> bool:
        """Ask for the desired state now; calls at the same time share one report.

        Returns whether the controller answered within `seconds`."""
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
            except Exception as error:  # a link may raise any exception of its transport
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
        """Send one report, and apply the answer.

        News cut a report short that waits for a new revision. A report that began with news is urgent: the controller
        answers it at once, and it is never cut short. So a stream of news cannot keep the lease from being renewed.
        Raises what the link raises, and TimeoutError if no answer comes for as long as the lease."""
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
        """Renew the lease and apply the desired state.

        The lease counts from when the report was `sent`: a participant must never hold its lease for longer than the
        controller thinks."""
        self._renewed = sent
        self.desired = desired
        self._apply(desired)
        self._seen = desired.revision
        self._refreshing = False
        ended, self._round_ended = self._round_ended, asyncio.Event()
        ended.set()
