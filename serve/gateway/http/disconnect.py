"""Cancels work when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from serve.errors import RefusedError
from serve.gateway.http.errors import ClientGoneError

T = TypeVar("T")


async def until_gone(
    receive: Receive, work: Coroutine[Any, Any, T], seconds: float | None = None
) -> T:
    """Return the result of `work`. Cancels it if the client disconnects or `seconds` have passed.

    The body of the request must have been read before. Raises ClientGoneError if the client
    disconnects, RefusedError (503) if the time is over."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientGoneError
        raise RefusedError(
            503, f"The engine did not answer within {seconds:g} seconds; try again.", code="timeout"
        )
    finally:
        await _cancel(leaving, working)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel the tasks that still run, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
