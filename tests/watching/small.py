"""A small server for Prometheus: real gateway, controller, agents, store and database in one process; vLLM is faked."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.types import Receive, Scope, Send

from serve.bundle import Bundle
from serve.config.settings import Settings
from serve.engine.interface import EmbedCall, Embeddings, GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.fusion.drift.baseline import Baseline
from serve.fusion.drift.figures import AnswerFigures
from serve.gateway.app import create_app
from serve.manifest import Ensemble
from tests.serve.fakes import LABELS, make_bundle
from tests.serve.gateway.fakes import listening
from tests.serve.world import World
from tests.watching.prometheus import Prometheus, scraping

PLACES = 8


class Engines:
    """Asks the world's engines in turn. Each answer takes a while, and is what the test says."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seconds: Callable[[], float] = lambda: 0.02
        self.refusal: Callable[[], Refusal | None] = lambda: None
        self.label: str | None = None
        """The label of every answer; None: each label equally often."""

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        await asyncio.sleep(self.seconds())
        engine = random.choice(self._world.engines)
        engine.refusal = self.refusal()
        places = np.random.default_rng().integers(len(LABELS), size=len(call.inputs))
        for text, place in zip(call.inputs, places, strict=True):
            engine.answers[text.text] = self.label or LABELS[place]
        answer = await engine.predict(call)
        if isinstance(answer, Refusal):
            return answer
        return replace(answer, agreement=np.ones(len(call.inputs)))

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        raise NotImplementedError

    async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        await asyncio.sleep(self.seconds())
        yield b"data: {}\n\n"
        yield b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Small:
    url: str
    world: World
    engines: Engines
    prometheus: Prometheus
    gone: asyncio.Event
    """Set it, and the server answers no more."""

    async def only(self, *alerts: str) -> None:
        """Wait until these alerts fire, and no other."""
        await self.until(lambda: self.prometheus.firing() == set(alerts))

    async def until(self, condition: Callable[[], Any]) -> None:
        await asyncio.to_thread(self.prometheus.wait_for, condition)

    @contextlib.asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[None]:
        """Clients that send one request after another: predictions, and now and then a stream."""

        stop = asyncio.Event()

        async def send(http: httpx.AsyncClient, turn: int) -> None:
            while not stop.is_set():
                turn += 1
                if turn % 4:
                    texts = [f"{number}" for number in range(10)]
                    await http.post("/v1/predict", json={"model": "intents", "input": texts})
                else:
                    body = {"model": "intents", "prompt": "x", "stream": True}
                    await http.post("/v1/completions", json=body)
                await asyncio.sleep(0.02)

        async with (
            httpx.AsyncClient(base_url=self.url, timeout=60) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(count):
                group.create_task(send(http, number))
            yield
            stop.set()


def bundle_with_baseline(folder: Path) -> Bundle:
    """A bundle whose ensemble had each label equally often, and full agreement, on its validation rows."""
    bundle = make_bundle(folder)
    first = bundle.ensemble("intents")
    rows = 400
    labels = np.eye(len(LABELS), dtype=np.bool_)[np.arange(rows) % len(LABELS)]
    figures = AnswerFigures(np.ones(rows), np.zeros(rows), labels)
    second = Ensemble.model_validate({**first.model_dump(mode="json"), "version": 2})
    bundle.write_ensemble(Baseline.measured(second, figures).written(second))
    return bundle


@contextlib.asynccontextmanager
async def small_server(world: World, folder: Path, **options: Any) -> AsyncIterator[Small]:
    """Start the server and its Prometheus, whose rules look at the last three seconds."""
    world.bundles = [bundle_with_baseline(world.folder / "bundle")]
    world.options = options
    await world.start()
    engines = Engines(world)
    settings = Settings.model_validate({"bundles": [Path("bundle")], "max_in_flight": PLACES})
    app = create_app(engines, world.controller, world.gateways[0], settings)
    gone = asyncio.Event()

    async def until_gone(scope: Scope, receive: Receive, send: Send) -> None:
        if gone.is_set():
            raise ConnectionError("the server is gone")
        await app(scope, receive, send)

    with contextlib.ExitStack() as threads:
        async with listening(until_gone) as url:
            start = partial(threads.enter_context, scraping(url, folder, "3s", "250ms"))
            yield Small(url, world, engines, await asyncio.to_thread(start), gone)
