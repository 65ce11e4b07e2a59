"""The executor decides how members are trained: one after another in this process, or several at once."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from datasets import Dataset

from training.execution.jobs import LocalWorkers, Workers
from training.progress import Watch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """Work that was handed to an executor."""

    def result(self) -> T_co:
        """Wait for the work and return its result. Raises what the work raised, or what other work raised first."""


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs pieces of work, each of which may wait for workers to train. Leaving the context stops unfinished work."""

    def workers(self, rows: Dataset, needed: Sequence[Path]) -> Workers:
        """Return workers that train on `rows`. They need access to the files and folders `needed`."""

    def start(self, work: Callable[[], T]) -> Pending[T]:
        """Accept `work`, which runs now or when its result is asked for."""


class SequentialExecutor:
    """Runs one piece of work after another in this process, each when its result is asked for."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def workers(self, rows: Dataset, needed: Sequence[Path]) -> Workers:
        return LocalWorkers(rows, self._watch)

    def start(self, work: Callable[[], T]) -> Pending[T]:
        return _Later(work)


class _Later(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work

    def result(self) -> T:
        return self._work()
