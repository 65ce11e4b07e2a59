"""How much of the engine's queue each request may fill.

vLLM takes requests in order of arrival, without a bound. One call of many inputs, members and labels would put
thousands into its queue, and whoever comes next would wait behind all of them. So no more than a few batches are handed
to vLLM at once, and calls take the places that become free by turns."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

BATCHES = 2
"""How many of the engine's batches there are places for: while one is computed, the next one is ready."""


class Places:
    """Places in the engine's queue, which calls take by turns.

    A call has a line of its own. Each place that becomes free goes to the line whose turn it is, and that line goes
    to the end. So a call that wants one place waits for at most one place of every other call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        self._lines: OrderedDict[Line, deque[_Waiting]] = OrderedDict()

    def line(self) -> "Line":
        """The line of one call."""
        return Line(self)

    async def take(self, line: "Line", size: int) -> int:
        """Wait for `size` places at once, or for all where there are fewer. Returns how many were taken."""
        size = min(size, self._most)
        if not self._lines and size <= self._free:
            self._free -= size
            return size
        waiting = _Waiting(size, asyncio.get_running_loop().create_future())
        self._lines.setdefault(line, deque()).append(waiting)
        self._advance()
        try:
            await waiting.place
        except asyncio.CancelledError:
            if not waiting.place.cancelled():  # it was let in at the same moment
                self.give(size)
            else:
                self._leave(line, waiting)
            raise
        return size

    def give(self, size: int) -> None:
        """Give places back."""
        self._free += size
        self._advance()

    def _leave(self, line: "Line", waiting: "_Waiting") -> None:
        queue = self._lines.get(line)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            if not queue:
                del self._lines[line]
        self._advance()

    def _advance(self) -> None:
        """Let in those whose turn it is, as far as there are places."""
        while self._lines:
            line, queue = next(iter(self._lines.items()))
            if queue[0].size > self._free:
                return
            waiting = queue.popleft()
            if queue:
                self._lines.move_to_end(line)
            else:
                del self._lines[line]
            if not waiting.place.cancelled():
                self._free -= waiting.size
                waiting.place.set_result(None)


class Line:
    """One call's line for places."""

    def __init__(self, places: Places) -> None:
        self._places = places

    @asynccontextmanager
    async def place(self, size: int = 1) -> AsyncIterator[None]:
        """Around work that takes `size` places at once."""
        taken = await self._places.take(self, size)
        try:
            yield
        finally:
            self._places.give(taken)

    async def each(self, jobs: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
        """The results of all jobs, in order. A job is begun when it has a place.

        Raises what the first job to fail raised, once all others are cancelled and have ended."""
        work = _Work[T]()
        try:
            async with asyncio.TaskGroup() as group:
                for number, job in enumerate(jobs):
                    await self._places.take(self, 1)
                    task = group.create_task(work.run(number, job))
                    # not in the task: one that is cancelled before it has begun runs no line of its own
                    task.add_done_callback(lambda _: self._places.give(1))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return work.results()


class _Work(Generic[T]):
    def __init__(self) -> None:
        self._results: dict[int, T] = {}

    async def run(self, number: int, job: Callable[[], Awaitable[T]]) -> None:
        self._results[number] = await job()

    def results(self) -> list[T]:
        return [self._results[number] for number in range(len(self._results))]


class _Waiting:
    __slots__ = ("place", "size")

    def __init__(self, size: int, place: "asyncio.Future[None]") -> None:
        self.size = size
        self.place = place
