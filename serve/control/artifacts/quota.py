"""Limits the size of one artifact and the time that it takes to arrive."""

import logging
from time import monotonic

from serve.control.artifacts.store import StoreError

logger = logging.getLogger(__name__)

MAX_FILES = 100
PROGRESS_SECONDS = 10.0
"""How often a long copy is logged."""


class Quota:
    """Counts the files and bytes of one copy, and stops the copy at the limits."""

    def __init__(self, place: str, max_bytes: int, seconds: float) -> None:
        """`place`: the source of the copy, for messages."""
        self._place = place
        self._max_bytes = max_bytes
        self._began = self._told = monotonic()
        self._seconds = seconds
        self._files = self._bytes = 0

    def expect(self, size: int) -> None:
        """Check the size in bytes that the source announces. Raises StoreError if it is too large."""
        if size > self._max_bytes:
            raise self._too_large()

    def add_file(self) -> None:
        """Count one more file. Raises StoreError if there are too many."""
        self._files += 1
        if self._files > MAX_FILES:
            raise self._too_large()

    def add_bytes(self, count: int) -> None:
        """Count bytes that have arrived. Raises StoreError if there are too many, or if the copy takes too long."""
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
        """Log that the copy is complete."""
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
