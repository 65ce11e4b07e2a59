"""Starts a world of ensembles on demand, and sends requests to it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serve.engine.interface import Version
from serve.errors import Refusal
from tests.serve.fakes import make_adapter, make_bundle
from tests.serve.world import World


async def start(
    world: World,
    count: int,
    *,
    members: int = 1,
    engines: int = 1,
    adapter: Callable[[Path, int], Path] = make_adapter,
    **options: Any,
) -> None:
    """Start with `count` ensembles `e0`, `e1`, ..., each with version 1; by default, all of them are on demand."""
    names = [f"e{number}" for number in range(count)]
    world.bundles = [make_bundle(world.folder / "bundle", *names, members=members, adapter=adapter)]
    world.options = {"pinned": [], **options}
    await world.start(engines=engines)


async def ask(world: World, key: str, engine: int = 0) -> Version | Refusal | None:
    """Send a request as the engine's deployment does. Return the version that answered, or why it cannot be loaded, or
    None if the engine lacks it."""
    async with world.engine_agents[engine].using(key) as refusal:
        return refusal or await world.engines[engine].answer(key)


async def answers(work: Awaitable[Version | Refusal | None], key: str) -> None:
    """Check that the request `work` is answered by the version `key`, within 20 seconds."""
    async with asyncio.timeout(20):
        answer = await work
    assert isinstance(answer, Version), answer
    assert answer.key == key
