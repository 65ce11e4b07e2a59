"""How much one artifact may be, and how long it may take to arrive."""

import logging
from time import monotonic

from serve.control.artifacts.store import StoreError

logger = logging.getLogger(__name__)

MAX_FILES = 100
PROGRESS_SECONDS = 10.0
"""How often a long copy is logged."""


class Quota:
    """Counts what is copied from one place, and ends it when it is too much."""

    def __init__(self, place: str, max_bytes: int, seconds: float) -> None:
        """`place`: what the copy is of, for messages."""
        self._place = place
        self._max_bytes = max_bytes
        self._began = self._told = monotonic()
        self._seconds = seconds
        self._files = self._bytes = 0

    def expect(self, size: int) -> None:
        """The source says how many bytes it has. Raises StoreError if that is too much."""
        if size > self._max_bytes:
            raise self._too_large()

    def add_file(self) -> None:
        """One more file. Raises StoreError."""
        self._files += 1
        if self._files > MAX_FILES:
            raise self._too_large()

    def add_bytes(self, count: int) -> None:
        """More bytes have come. Raises StoreError."""
        self._bytes += count
        if self._bytes > self._max_bytes:
            raise self._too_large()
        now = monotonic()
        if now - self._began > self._seconds:
            raise StoreError(
                f"{self._place} did not arrive within {self._seconds:g} seconds; copy it closer, or raise "
                "CHOIR_FETCH_TIMEOUT_SECONDS."
            )
        if now - self._told > PROGRESS_SECONDS:
            self._told = now
            logger.info(
                "%s: %.0f MB in %d files so far", self._place, self._bytes / 1e6, self._files
            )

    def done(self) -> None:
        """All is copied."""
        seconds = monotonic() - self._began
        logger.info(
            "%s: copied %.1f MB in %d files in %.1f s",
            self._place,
            self._bytes / 1e6,
            self._files,
            seconds,
        )

    def _too_large(self) -> StoreError:
        return StoreError(
            f"{self._place} is too large for an adapter: at most {MAX_FILES} files and {self._max_bytes / 1e9:g} GB "
            "are taken (CHOIR_MAX_ADAPTER_GB)."
        )
