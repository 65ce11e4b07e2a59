"""Shares vLLM's queue fairly between calls.

vLLM takes requests in order of arrival, without a bound. A call with many inputs, members and labels would put
thousands of requests into its queue, and the next call would wait behind all of them. So Choir hands vLLM no more than
a few batches at once. Each request needs a place, and calls take free places in turn."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

BATCHES = 2
"""How many of the engine's batches have places: while vLLM computes one, the next one is ready."""


class FairQueue:
    """The places in the engine's queue.

    Every call has a queue of its own (`CallQueue`). A free place goes to the call whose turn it is, and that call goes
    to the end. So a call that wants one place waits for at most one place of every other call."""

    def __init__(self, places: int) -> None:
        self._total = places
        self._free = places
        self._waiting: OrderedDict[CallQueue, deque[_Waiting]] = OrderedDict()

    @property
    def load(self) -> int:
        """The places that are taken, and those that are waited for."""
        waiting = sum(each.size for queue in self._waiting.values() for each in queue)
        return self._total - self._free + waiting

    def for_call(self) -> "CallQueue":
        """Returns the queue of a new call."""
        return CallQueue(self)

    async def take(self, call: "CallQueue", size: int) -> int:
        """Waits for `size` places at once, or for all places if there are fewer. Returns how many it took."""
        size = min(size, self._total)
        if not self._waiting and size <= self._free:
            self._free -= size
            return size
        waiting = _Waiting(size, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(call, deque()).append(waiting)
        self._advance()
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if not waiting.granted.cancelled():  # it got its places at the same moment
                self.give(size)
            else:
                self._remove(call, waiting)
            raise
        return size

    def give(self, size: int) -> None:
        """Gives `size` places back."""
        self._free += size
        self._advance()

    def _remove(self, call: "CallQueue", waiting: "_Waiting") -> None:
        queue = self._waiting.get(call)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            if not queue:
                del self._waiting[call]
        self._advance()

    def _advance(self) -> None:
        """Grants places in turn until the next request needs more than are free."""
        while self._waiting:
            call, queue = next(iter(self._waiting.items()))
            if queue[0].size > self._free:
                return
            waiting = queue.popleft()
            if queue:
                self._waiting.move_to_end(call)
            else:
                del self._waiting[call]
            if not waiting.granted.cancelled():
                self._free -= waiting.size
                waiting.granted.set_result(None)


class CallQueue:
    """The requests of one call that wait for places."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue

    @asynccontextmanager
    async def place(self, size: int = 1) -> AsyncIterator[None]:
        """Holds `size` places, taken at once, around the caller's work."""
        taken = await self._queue.take(self, size)
        try:
            yield
        finally:
            self._queue.give(taken)

    async def run_all(self, jobs: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
        """Runs every job, each one as soon as it has a place. Returns the results in the order of the jobs.

        If a job fails, cancels the others, waits until they have ended, and raises the error of the job that failed
        first."""
        results = _Results[T]()
        try:
            async with asyncio.TaskGroup() as group:
                for number, job in enumerate(jobs):
                    await self._queue.take(self, 1)
                    task = group.create_task(results.run(number, job))
                    # A callback, because a task that is cancelled before it begins runs none of its own code.
                    task.add_done_callback(lambda _: self._queue.give(1))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return results.in_order()


class _Results(Generic[T]):
    def __init__(self) -> None:
        self._results: dict[int, T] = {}

    async def run(self, number: int, job: Callable[[], Awaitable[T]]) -> None:
        self._results[number] = await job()

    def in_order(self) -> list[T]:
        return [self._results[number] for number in range(len(self._results))]


class _Waiting:
    __slots__ = ("granted", "size")

    def __init__(self, size: int, granted: "asyncio.Future[None]") -> None:
        self.size = size
        self.granted = granted
