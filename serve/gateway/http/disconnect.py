"""Cancels work when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive

from serve.errors import Refusal, RefusedError
from serve.gateway.http.errors import ClientGoneError

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """How long something may take, and what the client gets afterwards."""

    seconds: float
    refusal: Refusal


def server_limit(seconds: float) -> Limit:
    """Return the limit of a server that gives a request up after `seconds`."""
    words = f"The engine did not answer within {seconds:g} seconds; try again."
    return Limit(seconds, Refusal(503, words, "timeout"))


async def until_gone(
    receive: Receive, work: Coroutine[Any, Any, T], limit: Limit | None = None
) -> T:
    """Return the result of `work`. Cancels it if the client disconnects or the time is over.

    Work whose time is over before is not begun. The body of the request must have been read before. Raises
    ClientGoneError if the client disconnects, RefusedError with the limit's refusal if the time is over."""
    if limit is not None and limit.seconds <= 0:
        work.close()
        raise RefusedError.of(limit.refusal)
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait(
            (working, leaving),
            timeout=limit.seconds if limit else None,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientGoneError
        assert limit is not None, "without a limit, one of the two is done"
        raise RefusedError.of(limit.refusal)
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
