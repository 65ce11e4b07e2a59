"""Tells all waiting tasks that something has changed."""

import asyncio
import contextlib


class Changes:
    """A signal that tasks of one event loop wait for, so that none of them polls."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all waiting tasks: something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None) -> None:
        """Return at the next ring, or after `seconds`."""
        event = self._event
        with contextlib.suppress(TimeoutError):
            # In Python 3.11, wait_for loses a cancellation that comes together with the ring.
            async with asyncio.timeout(seconds):
                await event.wait()
