"""Calls take places in the engine's queue in turn."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve.engine.limits.fair_queue import CallQueue, FairQueue


class Engine:
    """Runs jobs until `finish` lets them end, and remembers in which order they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.running = 0
        self.most = 0
        self._going = asyncio.Semaphore(0)

    def job(self, name: str) -> Callable[[], Awaitable[str]]:
        async def run() -> str:
            self.begun.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self._going.acquire()
            finally:
                self.running -= 1
            return name

        return run

    async def finish(self, jobs: int) -> None:
        """Lets so many jobs end, and everything that follows from it happen."""
        for _ in range(jobs):
            self._going.release()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def call(queue: CallQueue, engine: Engine, name: str, jobs: int) -> "asyncio.Task[list[str]]":
    return asyncio.create_task(queue.run_all(engine.job(f"{name}{n}") for n in range(jobs)))


async def test_no_more_jobs_run_than_there_are_places_and_all_are_answered_in_order() -> None:
    shared, engine = FairQueue(4), Engine()
    calls = [call(shared.for_call(), engine, name, 25) for name in "abc"]
    await settled()
    await engine.finish(75)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*calls)
    assert answers == [[f"{name}{n}" for n in range(25)] for name in "abc"]
    assert engine.most == 4


async def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    shared, engine = FairQueue(2), Engine()
    large = call(shared.for_call(), engine, "large", 10_000)
    await settled()
    small = call(shared.for_call(), engine, "small", 1)
    await settled()
    assert engine.begun == ["large0", "large1"]
    await engine.finish(2)
    assert "small0" in engine.begun[:4], "it got the second free place at the latest"
    large.cancel()
    await engine.finish(10)
    assert await small == ["small0"]


async def test_a_large_call_makes_no_more_tasks_than_there_are_places() -> None:
    shared, engine = FairQueue(3), Engine()
    before = len(asyncio.all_tasks())
    large = call(shared.for_call(), engine, "large", 100_000)
    await settled()
    assert len(asyncio.all_tasks()) <= before + 1 + 3
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    assert engine.running == 0


async def test_work_that_needs_several_places_gets_them_at_once() -> None:
    shared, engine = FairQueue(3), Engine()
    other = call(shared.for_call(), engine, "other", 5)
    await settled()
    inside = asyncio.Event()

    async def group(size: int) -> None:
        async with shared.for_call().place(size):
            inside.set()

    waiting = asyncio.create_task(group(2))
    await engine.finish(2)
    assert engine.begun == ["other0", "other1", "other2", "other3"], (
        "the other call was first in the queue"
    )
    assert not inside.is_set(), "one place is free, and it is kept for the call that waits for two"
    await engine.finish(1)
    assert inside.is_set()
    await waiting
    await engine.finish(5)
    assert len(await other) == 5
    async with asyncio.timeout(10):
        await group(99)  # more than there are: it takes all


async def test_a_job_that_fails_ends_the_others_before_the_call_fails() -> None:
    shared, engine = FairQueue(3), Engine()

    async def fail() -> str:
        await settled()
        raise ValueError("no")

    jobs = [engine.job("a"), fail, engine.job("b"), engine.job("c")]
    with pytest.raises(ValueError, match=r"^no$"):
        await shared.for_call().run_all(jobs)
    assert engine.running == 0
    async with asyncio.timeout(10), shared.for_call().place(3):
        pass  # all places are back


async def test_a_cancelled_call_gives_its_places_back() -> None:
    shared, engine = FairQueue(1), Engine()
    queue = shared.for_call()
    running = call(queue, engine, "a", 3)
    await settled()
    waiting = call(shared.for_call(), engine, "b", 3)
    await settled()
    waiting.cancel()
    running.cancel()
    await settled()
    async with asyncio.timeout(10), shared.for_call().place(1):
        pass
    assert engine.begun == ["a0"]


async def test_the_load_counts_what_runs_and_what_waits() -> None:
    shared = FairQueue(4)
    assert shared.load == 0
    running = shared.for_call().place(3)
    await running.__aenter__()
    waiting = asyncio.create_task(shared.take(shared.for_call(), 2))
    await settled()
    assert shared.load == 5
    waiting.cancel()
    await settled()
    assert shared.load == 3
    await running.__aexit__(None, None, None)
    assert shared.load == 0
