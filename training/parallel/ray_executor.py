"""The executor on a Ray cluster. Each member has a thread here, which waits for the Ray tasks that train the member."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from datasets import Dataset

from training.execution.executor import Pending
from training.execution.jobs import Workers
from training.parallel.cluster import demand, demand_shared, joined
from training.parallel.options import Parallel
from training.parallel.progress_queue import ProgressQueue
from training.parallel.workers import RayWorkers
from training.progress import Watch

T = TypeVar("T")

THREADS = 512
"""How many members have a thread; any others wait for a free one."""


class RayExecutor:
    """Runs work in threads, and its training on the cluster. The first failure ends the run."""

    def __init__(self, options: Parallel, folder: Path, watch: Watch) -> None:
        """`folder` is the run's folder, which every machine must see."""
        self._options = options
        self._folder = folder
        self._watch = watch
        self._stack = ExitStack()
        self._failed: Future[Any] = Future()

    def __enter__(self) -> Self:
        """Connect to the cluster and start the threads. Raises ClusterError."""
        with ExitStack() as stack:
            stack.enter_context(joined(self._options))
            demand_shared(self._folder)
            self._progress_queue = stack.enter_context(ProgressQueue(self._watch))
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="member")
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def workers(self, rows: Dataset, needed: Sequence[Path]) -> Workers:
        """Return workers on the cluster. Raises ClusterError if a machine lacks one of the paths `needed`."""
        demand(needed)
        workers = RayWorkers(rows, self._progress_queue, self._options.members)
        # On exit, tasks stop first: the threads wait for them.
        self._stack.callback(workers.stop)
        return workers

    def start(self, work: Callable[[], T]) -> Pending[T]:
        return _Started(self._pool.submit(self._watched, work), self._failed)

    def _watched(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseException as error:
            if not self._failed.done():
                self._failed.set_exception(error)
            raise


class _Started(Generic[T]):
    def __init__(self, future: Future[T], failed: Future[Any]) -> None:
        self._future = future
        self._failed = failed

    def result(self) -> T:
        """Wait for the work and return its result. Raises the first failure of any work."""
        wait((self._future, self._failed), return_when=FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()
        return self._future.result()
