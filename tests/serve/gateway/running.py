"""A server with everything but Ray and vLLM: gateway, controller, store and database behind a real socket."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.bundle import Bundle
from serve.config.settings import Settings
from serve.gateway.app import create_app
from serve.gateway.links import EngineLink
from tests.serve.gateway.fakes import FakeEngines, listening
from tests.serve.world import World


@contextmanager
def running(
    folder: Path,
    *bundles: Bundle,
    engines: Callable[[World], EngineLink] = lambda world: FakeEngines(),
    **settings: Any,
) -> Iterator[str]:
    """Run a server in a thread, and yield its address. Without bundles it makes one. `engines` answer for the gateway,
    which has the `settings`."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    address: list[str] = []
    stop = asyncio.Event()

    async def serve() -> None:
        world = World(folder)
        world.bundles = list(bundles)
        try:
            await world.start()
            whole = Settings.model_validate({"bundles": [Path("bundle")], **settings})
            app = create_app(engines(world), world.controller, world.gateways[0], whole)
            async with listening(app) as url:
                address.append(url)
                started.set()
                await stop.wait()
        finally:
            started.set()
            await world.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
