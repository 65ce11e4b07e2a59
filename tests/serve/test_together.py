"""Work at once, none of which outlives the whole."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve.together import merged, together


class Work:
    """Pieces of work that are slow to end, and how many run."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = asyncio.Event()

    async def endless(self) -> int:
        self.running += 1
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.running -= 1
        return 0

    async def failing(self) -> int:
        await self.begun.wait()
        raise ValueError("the first to fail")

    async def stream(self) -> AsyncGenerator[int, None]:
        yield 1
        yield await self.endless()


async def value(number: int, turns: int = 0) -> int:
    for _ in range(turns):
        await asyncio.sleep(0)
    return number


async def test_results_come_in_order() -> None:
    assert await together(value(number, 5 - number) for number in range(5)) == [0, 1, 2, 3, 4]
    assert await together([]) == []


async def test_when_one_fails_the_others_have_ended() -> None:
    work = Work()
    with pytest.raises(ValueError, match="the first to fail"):
        await together([work.endless(), work.failing(), work.endless()])
    assert work.begun.is_set()
    assert work.running == 0


@pytest.mark.parametrize("times", [1, 2])
async def test_who_is_cancelled_leaves_nothing_running(times: int) -> None:
    work = Work()
    whole = asyncio.create_task(together([work.endless(), work.endless()]))
    await work.begun.wait()
    for _ in range(times):
        whole.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([whole])
    assert whole.cancelled()
    assert work.running == 0


async def numbers(*given: int) -> AsyncGenerator[int, None]:
    for number in given:
        await asyncio.sleep(0)
        yield number


async def test_streams_are_merged_each_in_its_order() -> None:
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    async for place, number in merged([numbers(1, 2, 3), numbers(), numbers(4, 5)]):
        found[place].append(number)
    assert found == {0: [1, 2, 3], 1: [], 2: [4, 5]}


async def test_when_one_stream_fails_or_is_left_the_others_have_ended() -> None:
    work = Work()

    async def breaks() -> AsyncGenerator[int, None]:
        yield 1
        yield await work.failing()

    with pytest.raises(ValueError, match="the first to fail"):
        async for _ in merged([work.stream(), breaks()]):
            pass
    assert work.running == 0
    left = merged([work.stream(), work.stream()])
    work.begun.clear()
    assert {await anext(left), await anext(left)} == {(0, 1), (1, 1)}
    await work.begun.wait()
    await left.aclose()
    assert work.running == 0
