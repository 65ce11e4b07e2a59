"""A few alerts that a real Prometheus fires over a real gateway and a real controller; only vLLM is faked.

test_alerts.py causes every alert on a whole server."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from pathlib import Path

import httpx

from serve.config import Settings
from serve.engine.interface import GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.gateway.app import create_app
from tests.serve.gateway.fakes import listening
from tests.serve.world import SHORT_LEASE, World, refused
from tests.watching.prometheus import needs_prometheus, scraping

PLACES = 8


class Engines:
    """Asks the world's engines in turn; each answer takes a while."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        await asyncio.sleep(0.02)
        return await random.choice(self._world.engines).predict(call)

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        raise NotImplementedError


@contextlib.asynccontextmanager
async def clients(url: str, count: int) -> AsyncIterator[None]:
    """Clients that send one request after another."""

    async def send(http: httpx.AsyncClient) -> None:
        while True:
            await http.post("/v1/predict", json={"model": "intents", "input": "x"})
            await asyncio.sleep(0.02)

    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [asyncio.create_task(send(http)) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@needs_prometheus
async def test_alerts_fire_by_their_causes_and_not_before(world: World, tmp_path: Path) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    settings = Settings.model_validate({"bundles": [Path("bundle")], "max_in_flight": PLACES})
    app = create_app(Engines(world), world.controller, world.gateways[0], settings)
    with contextlib.ExitStack() as threads:
        async with listening(app) as url:
            start = partial(threads.enter_context, scraping(url, tmp_path, "3s", "250ms"))
            prometheus = await asyncio.to_thread(start)

            async def only(*alerts: str) -> None:
                """Wait until these alerts fire, and no other."""
                fires = lambda: prometheus.firing() == set(alerts)  # noqa: E731
                await asyncio.to_thread(prometheus.wait_for, fires)

            async with clients(url, 2):
                busy = 'ensemble:choir_requests:rate5m{ensemble="intents"} > 1'
                await asyncio.to_thread(prometheus.wait_for, partial(prometheus.query, busy))
                assert prometheus.firing() == set()

                async with clients(url, 3 * PLACES):
                    await only("ChoirQueueFull")
                await only()

                world.engines[0].broken["intents@2"] = "its files are damaged"
                assert "damaged" in refused(await world.swap(1), 400)
                await only("ChoirLoadFailures")
                await only()

                world.link.cut_off.add("engine0")
                await only("ChoirLeaseLost")
