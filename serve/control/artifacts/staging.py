"""Holds the files of one request until all of them have passed their checks."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.control.artifacts.store import Store


class Staging:
    """Copies on the disk of the store. Copies that are not kept are deleted at the end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._scratch = ExitStack()
        self._copies: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scratch.close()

    def scratch(self) -> Path:
        """An empty folder to copy into."""
        return self._scratch.enter_context(self._store.scratch())

    def add(self, copy: Path, digest: str) -> None:
        """Add a copy that has passed its checks."""
        self._copies[digest] = copy

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._copies)

    def keep(self) -> None:
        """Move all added copies into the store. Raises StoreError."""
        for digest, copy in self._copies.items():
            self._store.keep(copy, digest)
