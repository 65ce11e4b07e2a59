"""Runs several pieces of work at once; none of them outlives the whole."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Returns the results, in order. Raises the first failure.

    If one fails or the whole is cancelled, the others are cancelled. All have ended when this returns or raises, which
    `asyncio.gather` does not do."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yields the streams' pieces as they come, each with its stream's index. When this ends, all streams have ended.
    Raises what a stream raises."""
    turns = {asyncio.create_task(anext(each)): place for place, each in enumerate(streams)}
    try:
        while turns:
            done, _ = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
            for turn in done:
                place = turns.pop(turn)
                try:
                    piece = turn.result()
                except StopAsyncIteration:
                    continue
                turns[asyncio.create_task(anext(streams[place]))] = place
                yield place, piece
    finally:
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
