"""What one request brings, held back from the store until all of it has passed."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.control.artifacts.store import Store


class Staging:
    """Copies beside the store; whatever was not kept is gone at the end."""

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
        """A copy has passed its checks."""
        self._copies[digest] = copy

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._copies)

    def keep(self) -> None:
        """All has passed: put it into the store. Raises StoreError."""
        for digest, copy in self._copies.items():
            self._store.keep(copy, digest)
