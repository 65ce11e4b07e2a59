"""A bell for everybody who waits for something to change."""

import asyncio
import contextlib


class Changes:
    """Whoever waits looks again at every ring; nobody polls. For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Something changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None) -> None:
        """Until the next ring, but at most `seconds`."""
        event = self._event
        with contextlib.suppress(TimeoutError):
            # Not wait_for, which loses a cancellation that comes together with the ring (3.11).
            async with asyncio.timeout(seconds):
                await event.wait()
