"""What a request is told when vLLM's core process is dead.

The core does all the work and does not come back. So the refusal makes the gateway ask another engine, and the replica
ends soon after (`EngineDeployment` in `serve/graph/app.py`)."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from serve.engine.interface import ENGINE_DIED, ENGINE_GONE
from serve.errors import Refusal

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""Seconds between two looks at whether the core is alive."""

GONE = Refusal(503, "The engine has failed and is being replaced; try again.", code=ENGINE_GONE)
DIED = Refusal(503, "The engine that worked on this has failed; try again.", code=ENGINE_DIED)


class Core(Protocol):
    """The part of vLLM's client that this module uses."""

    @property
    def errored(self) -> bool:
        """Whether the core is dead."""
        ...


async def death_of(core: Core) -> None:
    """Returns when the core is dead."""
    while not core.errored:  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(LOOK_SECONDS)


async def answered(core: Core, work: Callable[[], Coroutine[Any, Any, T | Refusal]]) -> T | Refusal:
    """Returns the result of `work`; GONE if the core was dead before; DIED if `work` raises after the core died.

    Passes on what `work` raises while the core is alive."""
    if core.errored:
        return GONE
    try:
        return await work()
    except Exception:
        if not core.errored:
            raise
        return DIED


async def streamed(
    core: Core, parts: AsyncGenerator[bytes | Refusal, None]
) -> AsyncGenerator[bytes | Refusal, None]:
    """Yields an answer's parts. If the core is dead, the last item is GONE or DIED, as in `answered`."""
    if core.errored:
        yield GONE
        return
    try:
        async with aclosing(parts):
            async for part in parts:
                failed = isinstance(part, Refusal) and part.status >= 500
                yield DIED if failed and core.errored else part
    except Exception:
        if not core.errored:
            raise
        yield DIED
