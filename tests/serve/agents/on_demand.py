"""Ensembles that are loaded by requests for them, and the requests."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serve.engine.interface import Version
from serve.refusal import Refusal
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
    """`count` ensembles, e0 first, none of them always loaded."""
    names = [f"e{number}" for number in range(count)]
    world.bundles = [make_bundle(world.folder / "bundle", *names, members=members, adapter=adapter)]
    world.options = {"pinned": [], **options}
    await world.start(engines=engines)


async def ask(world: World, key: str, engine: int = 0) -> Version | Refusal | None:
    """As the engine's deployment does: what answered, why it cannot be loaded, or None for a version that it lacks."""
    async with world.engine_agents[engine].using(key) as refusal:
        return refusal or await world.engines[engine].answer(key)


async def answers(work: Awaitable[Version | Refusal | None], key: str) -> None:
    async with asyncio.timeout(20):
        answer = await work
    assert isinstance(answer, Version), answer
    assert answer.key == key
