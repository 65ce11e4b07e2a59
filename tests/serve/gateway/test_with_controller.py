"""Trials with real gateways, agents and a real controller, without Ray. Only vLLM is faked."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve.config.settings import Settings
from serve.control import controller as controller_module
from serve.engine.interface import (
    VERSION_NOT_LOADED,
    EmbedCall,
    Embeddings,
    GenerateCall,
    PredictCall,
    Prediction,
)
from serve.errors import Refusal
from serve.fusion.fused import Fused
from serve.gateway.app import create_app
from serve.gateway.links import Unavailable
from tests.serve.fakes import LABELS, FakeEngine, until
from tests.serve.world import World

__all__ = ["world"]

from tests.serve.world import world

SWAP = "/v1/ensembles/intents/swap"


class Engines:
    """Chooses an engine for each call, as Ray's handle does. A call to a dead engine fails."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.dead: set[FakeEngine] = set()
        self.wrong: set[str] = set()
        """Digests of adapters that answer another label than all others."""
        self.raising: set[str] = set()
        """Digests of adapters that raise in every tenth answer."""
        self._turn = 0

    async def predict(self, call: PredictCall) -> Prediction | Refusal:
        engine = random.choice(self._world.engines)
        if engine in self.dead:
            self._world.engines.remove(engine)  # the handle knows it now
            raise Unavailable("The engine died.")
        version = await engine.answer(call.version)
        if version is None:
            return Refusal(503, f"{call.version} is not here", VERSION_NOT_LOADED)
        if self.raising & set(version.ensemble.digests):
            self._turn += 1
            if self._turn % 10 == 0:
                raise RuntimeError("the engine raised")
        label = int(bool(self.wrong & set(version.ensemble.digests)))
        rows = len(call.inputs)
        answered = Fused(
            np.full((rows, 2), 0.5), np.zeros(rows), np.zeros(rows), np.full(rows, label)
        )
        return Prediction(
            version=version.key,
            labels=tuple(LABELS),
            answers=answered,
            members=tuple(version.ensemble.members),
            member_answers=(answered, answered) if call.return_members else None,
            prompt_tokens=1,
            member_tokens=2,
        )

    async def embed(self, call: EmbedCall) -> Embeddings | Refusal:
        raise NotImplementedError

    def generate(self, call: GenerateCall) -> AsyncGenerator[bytes | Refusal, None]:
        raise NotImplementedError


class Clients:
    """Send one request after another, through every gateway, and record the answers."""

    def __init__(self, gateways: list[httpx.AsyncClient]) -> None:
        self._gateways = gateways
        self.failures: list[str] = []
        self.failed_by: Counter[str] = Counter()
        """Model -> number of its failed answers."""
        self.models: Counter[str] = Counter()
        self.contents: dict[str, set[tuple[str, ...]]] = {}
        """Model -> digests of the adapters that answered as it."""

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self._client(http)) for http in self._gateways * 4]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, http: httpx.AsyncClient) -> None:
        while True:
            body = {"model": "intents", "input": "x", "return_members": True}
            # A loop that is always busy leaves the threads of the controller no time to read and write.
            await asyncio.sleep(0.02)
            response = await http.post("/v1/predict", json=body)
            if response.status_code != 200:
                self.failures.append(response.text)
                self.failed_by[response.headers["x-choir-model"]] += 1
                continue
            answer = response.json()
            self.models[answer["model"]] += 1
            members = answer["data"][0]["members"]
            digests = tuple(each["adapters"][0]["digest"] for each in members)
            self.contents.setdefault(answer["model"], set()).add(digests)

    def check(self) -> None:
        assert self.failures == []
        assert all(len(digests) == 1 for digests in self.contents.values()), self.contents


@pytest.fixture(autouse=True)
def _figures_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "TRIAL_SECONDS", 0.02)


@asynccontextmanager
async def served(world: World) -> AsyncIterator[tuple[Engines, list[httpx.AsyncClient]]]:
    """Start two gateways and two engines."""
    await world.start(engines=2, gateways=2)
    await until(lambda: all(gateway.ready for gateway in world.gateways))
    engines = Engines(world)
    settings = Settings.model_validate({"bundles": [Path("bundle")]})
    gateways = []
    for agent in world.gateways:
        app = create_app(engines, world.controller, agent, settings)
        transport = httpx.ASGITransport(app)
        gateways.append(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000"))
    yield engines, gateways
    for gateway in gateways:
        await gateway.aclose()


async def swap(gateways: list[httpx.AsyncClient], world: World, seed: int, **more: Any) -> Any:
    body = {"members": {"a": world.new_adapter(seed)}, **more}
    return await gateways[0].post(f"{SWAP}?wait=true", json=body)


def canary(**gates: Any) -> dict[str, Any]:
    return {"kind": "canary", "share": 0.3, "gates": {"min_requests": 50, **gates}}


async def test_no_request_fails_during_canaries_swaps_and_the_death_of_an_engine(
    world: World,
) -> None:
    world.options = {"keep_warm": 0, "lease_seconds": 6}
    async with served(world) as (engines, gateways):
        clients = Clients(gateways)
        async with clients.asking():
            first = await swap(gateways, world, 100, strategy=canary())
            assert first.status_code == 200, first.text
            assert first.json()["trial"]["candidate"]["requests"] >= 50
            plain = await swap(gateways, world, 101)
            assert plain.status_code == 200, plain.text
            engines.dead.add(world.engines[1])
            world.link.cut_off.add("engine1")
            again = await swap(gateways, world, 102, strategy=canary(min_agreement=0.9))
            assert again.status_code == 200, again.text
            assert again.json()["trial"]["agreement"] == 1.0
        clients.check()
        assert set(clients.models) >= {"intents@1", "intents@2", "intents@3", "intents@4"}
        for http in gateways:
            answer = await http.post("/v1/predict", json={"model": "intents", "input": "x"})
            assert answer.json()["model"] == "intents@4"


async def test_a_canary_that_disagrees_is_aborted_without_failed_requests(world: World) -> None:
    async with served(world) as (engines, gateways):
        clients = Clients(gateways)
        async with clients.asking():
            started = await gateways[0].post(
                SWAP,
                json={
                    "members": {"a": world.new_adapter(100)},
                    "strategy": canary(min_agreement=0.9),
                },
            )
            assert started.status_code == 202, started.text
            candidate = await world.controller.ensemble("intents")
            assert not isinstance(candidate, Refusal)
            engines.wrong = set(candidate.versions[-1].digests) - set(candidate.digests)
            assert len(engines.wrong) == 1

            async def aborted() -> bool:
                rollout = await gateways[1].get(f"/v1/rollouts/{started.json()['id']}")
                return rollout.json()["state"] == "aborted"

            await until(aborted)
        clients.check()
        (ended,) = (await gateways[0].get("/v1/rollouts")).json()["data"]
        assert "agrees with the active version on 0.00% of" in ended["reason"]
        assert await world.active() == 1


@pytest.mark.parametrize("kind", ["canary", "shadow"])
async def test_a_candidate_with_a_tenth_of_errors_is_aborted_by_its_gate(
    world: World, kind: str
) -> None:
    async with served(world) as (engines, gateways):
        clients = Clients(gateways)
        async with clients.asking():
            strategy = {**canary(max_error_rate=0.05, min_requests=100), "kind": kind}
            body = {"members": {"a": world.new_adapter(100)}, "strategy": strategy}
            started = await gateways[0].post(SWAP, json=body)
            assert started.status_code == 202, started.text
            candidate = await world.controller.ensemble("intents")
            assert not isinstance(candidate, Refusal)
            engines.raising = set(candidate.versions[-1].digests) - set(candidate.digests)

            async def aborted() -> bool:
                rollout = await gateways[1].get(f"/v1/rollouts/{started.json()['id']}")
                return bool(rollout.json()["state"] == "aborted")

            await until(aborted)
        (ended,) = (await gateways[0].get("/v1/rollouts")).json()["data"]
        assert "more than the max_error_rate of 5.00%" in ended["reason"]
        assert ended["trial"]["candidate"]["errors"] > 5
        assert ended["trial"]["stable"]["errors"] == 0
        # Clients see what the canary got wrong on its own share, and of a shadow nothing.
        assert set(clients.failed_by) == ({"intents@2"} if kind == "canary" else set())
        assert await world.active() == 1


async def test_a_shadow_answers_clients_only_after_its_promotion(world: World) -> None:
    async with served(world) as (_, gateways):
        clients = Clients(gateways)
        async with clients.asking():
            strategy = {**canary(min_agreement=1.0), "kind": "shadow", "auto_promote": False}
            body = {"members": {"a": world.new_adapter(100)}, "strategy": strategy}
            rollout = (await gateways[0].post(SWAP, json=body)).json()

            async def passed() -> bool:
                found = (await gateways[1].get(f"/v1/rollouts/{rollout['id']}")).json()
                return bool(found["trial"]["compared"] >= 50)

            await until(passed)
            assert set(clients.models) == {"intents@1"}
            path = f"/v1/rollouts/{rollout['id']}/promote?wait=true"
            promoted = await gateways[1].post(path, json={})
            assert promoted.status_code == 200, promoted.text
        clients.check()
        answer = await gateways[0].post("/v1/predict", json={"model": "intents", "input": "x"})
        assert answer.json()["model"] == "intents@2"
