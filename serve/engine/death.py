"""What a request is told when vLLM's core, the process that does all the work, is dead: that another engine should be
asked. The replica ends soon after (`app.EngineDeployment`), since its core does not come back."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from serve.engine.interface import ENGINE_DIED, ENGINE_GONE
from serve.refusal import Refusal

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""How often it is looked whether the core still lives."""

GONE = Refusal(503, "The engine has failed and is being replaced; try again.", code=ENGINE_GONE)
DIED = Refusal(503, "The engine that worked on this has failed; try again.", code=ENGINE_DIED)


class Core(Protocol):
    """vLLM's client, as far as it is asked here."""

    @property
    def errored(self) -> bool:
        """Whether the core is dead."""
        ...


async def death_of(core: Core) -> None:
    """Returns when the core is dead."""
    while not core.errored:  # noqa: ASYNC110 - vLLM has no event for it
        await asyncio.sleep(LOOK_SECONDS)


async def answered(core: Core, work: Callable[[], Coroutine[Any, Any, T | Refusal]]) -> T | Refusal:
    """The result of `work`, or GONE or DIED. Whatever `work` raises once the core is dead comes of that."""
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
    """The same of an answer in parts, whose last item then is GONE or DIED."""
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
