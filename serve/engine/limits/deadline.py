"""Ends a call when the time that its client gives is over.

Ending it cancels the work, upon which vLLM drops the call's requests, whether they run or wait."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from serve.engine.interface import DEADLINE
from serve.errors import Refusal

T = TypeVar("T")


async def in_time(seconds: float | None, work: Coroutine[Any, Any, T | Refusal]) -> T | Refusal:
    """Returns the result of `work`, or the refusal after `seconds`; by then the work has ended."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        return DEADLINE


async def parts_in_time(
    seconds: float | None, parts: AsyncGenerator[T | Refusal, None]
) -> AsyncGenerator[T | Refusal, None]:
    """Yields the parts. After `seconds` the stream ends with the refusal; by then its work has ended."""
    ends = None if seconds is None else asyncio.get_running_loop().time() + seconds
    async with aclosing(parts):
        while True:
            # The time counts while this waits for a part, and not while the reader has it: only then is there work to
            # cancel here.
            try:
                async with asyncio.timeout_at(ends) as limit:
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not limit.expired():
                    raise
                break
            yield part
    yield DEADLINE
