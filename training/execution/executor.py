"""In which order members are trained, and by whom: one after another in this process, or several at once."""

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
    """Work whose result can be waited for."""

    def result(self) -> T_co:
        """Raises what the work raised, or what other work did that is no longer worth finishing it."""


class Executor(AbstractContextManager["Executor"], Protocol):
    """Does work that waits for its own training. Leaving it ends what is not finished."""

    def workers(self, rows: Dataset, needed: Sequence[Path]) -> Workers:
        """Those who train from `rows`; they must see the files and folders `needed`."""

    def start(self, work: Callable[[], T]) -> Pending[T]:
        """Have `work` done."""


class SequentialExecutor:
    """One after another, in this process: work is done when its result is asked for."""

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
