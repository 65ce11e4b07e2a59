"""A whole control plane in one process: the real controller, store, database and agents; only vLLM is faked."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.agents import eviction
from serve.agents.engine_agent import EngineAgent
from serve.agents.gateway_agent import GatewayAgent
from serve.bundle import Bundle
from serve.control.admission.pools import EngineLimits, Pool, by_base
from serve.control.controller import Controller
from serve.control.startup import ControllerOptions
from serve.errors import Refusal
from serve.protocol.requests import SwapRequest
from serve.protocol.views import RolloutView
from tests.serve.databases import PostgresServer, postgres_programs, postgres_server
from tests.serve.fakes import (
    FakeEngine,
    Link,
    make_adapter,
    make_bundle,
    make_prompt_adapter,
)

LEASE = 30.0
"""Long enough for the busiest machine: no lease runs out by accident."""
SHORT_LEASE = 1.0
"""For tests that wait for a lease to run out."""
RETRY = 0.01


class World:
    """A controller with engines and gateways around it, over one bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = Link()
        self.bundles: list[Bundle] = []
        self.pools: list[str] = []
        self.options: dict[str, Any] = {}
        self.database_url: str | None = None
        self.slots = 5
        self.engines: list[FakeEngine] = []
        self.engine_agents: list[EngineAgent] = []
        self.gateways: list[GatewayAgent] = []
        self.all_controllers: list[Controller] = []

    @property
    def controller(self) -> Controller:
        assert self.link.controller is not None
        return self.link.controller

    @property
    def store(self) -> Path:
        return self.folder / "store"

    async def start(self, engines: int = 1, gateways: int = 1) -> None:
        if not self.bundles:
            self.bundles = [make_bundle(self.folder / "bundle")]
        await self.start_controller()
        for _ in range(engines):
            await self.add_engine()
        for _ in range(gateways):
            await self.add_gateway()

    async def start_controller(self) -> None:
        pools = by_base([Bundle.open(each.path) for each in self.bundles])
        self.pools = list(pools)
        (self.folder / "new").mkdir(exist_ok=True)
        defaults: dict[str, Any] = {
            "adapter_roots": [self.folder / "new"],
            "lease_seconds": LEASE,
            "prepare_timeout_seconds": 60,
            "database_url": self.database_url,
        }
        options = ControllerOptions(
            [Pool(name, bundles, self._limits(bundles[0])) for name, bundles in pools.items()],
            self.store,
            **defaults | self.options,
        )
        controller = await Controller.open(options)
        self.all_controllers.append(controller)
        await controller.start()
        self.link.controller = controller

    def _limits(self, bundle: Bundle) -> EngineLimits:
        return EngineLimits(self.slots, 64, bundle.base_kind(), bundle.base_folder)

    async def kill_controller(self) -> None:
        """As kill -9 does: nothing is told to anybody, and nothing more is written."""
        controller = self.controller
        self.link.lose_controller()
        await controller.stop()

    async def add_engine(self, engine: FakeEngine | None = None, pool: int = 0) -> FakeEngine:
        """`pool`: the place of its pool among all."""
        engine = engine or FakeEngine(self.slots)
        link = self.link.of(f"engine{len(self.engines)}")
        agent = EngineAgent(engine, link, RETRY, self.pools[pool])
        self.engines.append(engine)
        self.engine_agents.append(agent)
        await agent.start()
        return engine

    async def add_gateway(self) -> GatewayAgent:
        agent = GatewayAgent(self.link.of(f"gateway{len(self.gateways)}"), RETRY)
        self.gateways.append(agent)
        await agent.start()
        return agent

    def new_adapter(self, seed: int, **options: Any) -> str:
        """The URI of an adapter with content of its own."""
        folder = self.folder / "new" / f"{seed}"
        if not folder.exists():
            make_adapter(folder, seed, **options)
        return folder.as_uri()

    def new_prompt_adapter(self, seed: int) -> str:
        """The same of another kind."""
        return make_prompt_adapter(self.folder / "new" / f"prompt-{seed}", seed).as_uri()

    async def swap(self, seed: int, *, wait: bool = True, **more: Any) -> RolloutView | Refusal:
        """Swap new content into member a."""
        body = SwapRequest.model_validate({"members": {"a": self.new_adapter(seed)}} | more)
        return await self.controller.swap("intents", body, "ada", wait)

    async def ask(self, body: dict[str, Any], name: str = "intents") -> RolloutView | Refusal:
        return await self.controller.swap(name, SwapRequest.model_validate(body), "ada", True)

    async def ask_without_waiting(self, body: dict[str, Any]) -> RolloutView:
        answer = await self.controller.swap("intents", SwapRequest.model_validate(body), "ada")
        assert not isinstance(answer, Refusal), answer.message
        return answer

    async def rollback(self, to: int | None = None) -> RolloutView | Refusal:
        return await self.controller.rollback("intents", to, "ada", True)

    async def active(self) -> int:
        view = await self.controller.ensemble("intents")
        assert not isinstance(view, Refusal)
        return view.active_version

    def routed(self) -> list[str]:
        """What `intents` means on each gateway now."""
        return [gateway.routes.named("intents").key for gateway in self.gateways]

    def holding(self) -> list[list[str]]:
        return [sorted(engine.held) for engine in self.engines]

    async def stop(self) -> None:
        self.link.lose_controller()
        for engine in self.engine_agents:
            await engine.stop()
        for gateway in self.gateways:
            await gateway.stop()
        for controller in self.all_controllers:
            await controller.stop()


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "TURN_SECONDS", 0.1)
    monkeypatch.setattr(eviction, "IDLE_SECONDS", 0.01)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian, Ubuntu: apt-get install postgresql)")
    with postgres_server(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that is served."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'choir.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Over SQLite in the store, or over each kind of database for tests that use `database_url`."""
    world = World(tmp_path)
    if "database_url" in request.fixturenames:
        world.database_url = request.getfixturevalue("database_url")
    yield world
    await world.stop()


def committed(answer: RolloutView | Refusal) -> RolloutView:
    """The rollout, which was not refused and is committed."""
    assert not isinstance(answer, Refusal), answer.message
    assert answer.state in ("draining", "done")
    return answer


def refused(answer: RolloutView | Refusal, status: int) -> str:
    """What was said against it."""
    assert isinstance(answer, Refusal), answer
    assert answer.status == status, answer
    return answer.message
