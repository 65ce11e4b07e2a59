"""Random programs for the real controller, leases and agents: changes, lost and late messages, processes that come, go
and restart, and requests all the while."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from serve.agents.engine_agent import EngineAgent
from serve.agents.gateway_agent import GatewayAgent
from serve.errors import Refusal
from tests.serve.agents.lossy_link import LEASE_SECONDS, SILENT_SECONDS, LossyLink
from tests.serve.fakes import FakeEngine, until
from tests.serve.world import RETRY, World

NAME = "intents"
PAUSES = (0.0, 0.0, 0.005, 0.02, 0.02, 0.1)
CONTENTS = range(100, 104)
"""Seeds of the adapters that are swapped in; equal content is a new version all the same."""
KINDS = ("immediate", "immediate", "canary", "shadow")
GATES = {"min_requests": 3, "max_error_rate": 0.5}


class Interleaving:
    """One program. `run` steps through it, checks after every step, and ends in a calm that has to settle."""

    def __init__(self, folder: Path, seed: int, steps: int) -> None:
        self.random = Random(seed)
        self.steps = steps
        self.world = World(folder)
        self.link = self.world.link = LossyLink(self.random)
        self.world.options = {
            "lease_seconds": LEASE_SECONDS,
            "prepare_timeout_seconds": 5,
            "keep_warm": self.random.choice([0, 0, 1]),
        }
        self.seen: Counter[str] = Counter()
        self.trace: list[str] = []
        self.stable: set[int] = set()
        """Versions that the plain name has meant on some gateway."""
        self.tried: set[int] = set()
        """Versions that a canary's requests were sent to."""
        self.engines: list[tuple[FakeEngine, EngineAgent]] = []
        self.starting: list[asyncio.Task[None]] = []
        """Participants that are about to join."""
        self.calls: list[asyncio.Task[object]] = []
        """Requests to the controller that runs now; they end with it."""
        self.long: list[tuple[FakeEngine, str, Callable[[], None]]] = []
        """Answers that are being written."""

    async def run(self) -> Counter[str]:
        try:
            await self.world.start(engines=2, gateways=2)
            self.engines = list(zip(self.world.engines, self.world.engine_agents, strict=True))
            for _ in range(self.steps):
                action = self.random.choice(self._table)
                self.trace.append(action.__name__)
                await action()
                await asyncio.sleep(self.random.choice(PAUSES))
                self.check()
            await self.check_that_calm_settles_it()
        except BaseException as error:
            error.add_note("steps: " + ", ".join(self.trace))
            raise
        finally:
            self.link.loss = 0
            await self._cut_short(self.calls)
            await self._cut_short(self.starting)
            await self.world.stop()
        return self.seen

    @property
    def _table(self) -> list[Callable[[], Awaitable[None]]]:
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self.ask: 12,
            self.begin_long_answer: 4,
            self.end_long_answer: 4,
            self.swap: 8,
            self.roll_back: 3,
            self.decide: 5,
            self.count: 3,
            self.lose_messages: 3,
            self.deliver_late: 4,
            self.cut_off: 3,
            self.reconnect: 5,
            self.let_leases_run_out: 1,
            self.break_next_version: 1,
            self.hold_up_an_engine: 1,
            self.replace_engine: 1,
            self.add_engine: 1,
            self.replace_gateway: 1,
            self.restart_controller: 1,
        }
        return [action for action, weight in weights.items() for _ in range(weight)]

    # Requests

    async def ask(self) -> None:
        """A request for the plain name, as a gateway sends it to some engine."""
        gateway = self.random.choice(self.world.gateways)
        engine, agent = self.random.choice(self.engines)
        target = gateway.routes.resolve(NAME)
        async with agent.using(target.key) as refusal:
            assert refusal is None, "nothing here is loaded on demand"
            version = await engine.answer(target.key)
        if version is None:
            self.seen["lacked"] += 1
            return
        assert version.key == target.key
        self.seen[target.track] += 1

    async def begin_long_answer(self) -> None:
        gateway = self.random.choice(self.world.gateways)
        engine, _ = self.random.choice(self.engines)
        key = gateway.routes.resolve(NAME).key
        if key in self._usable(engine):
            self.long.append((engine, key, engine.hold_request(key)))

    async def end_long_answer(self) -> None:
        if self.long:
            engine, key, end = self.long.pop(self.random.randrange(len(self.long)))
            assert key in engine.held, f"{key} was unloaded under a running request"
            end()
            self.seen["long answers"] += 1

    # Changes

    async def swap(self) -> None:
        strategy: dict[str, Any] = {"kind": self.random.choice(KINDS)}
        if strategy["kind"] != "immediate":
            strategy |= {"share": 0.5, "gates": GATES}
        self._call(self._swap(self.random.choice(CONTENTS), strategy))

    async def _swap(self, content: int, strategy: dict[str, Any]) -> None:
        wait = self.random.random() < 0.5
        answer = await self.world.swap(content, wait=wait, strategy=strategy)
        if isinstance(answer, Refusal):
            assert answer.status in (400, 409, 503), answer
            self.seen["refused"] += 1
        elif wait:
            self.check_is_committed_everywhere(answer.to_version)

    async def roll_back(self) -> None:
        self._call(self._roll_back())

    async def _roll_back(self) -> None:
        answer = await self.world.rollback()
        if not isinstance(answer, Refusal):
            self.seen["rolled back"] += 1
            self.check_is_committed_everywhere(answer.to_version)

    async def decide(self) -> None:
        rollout = self.world.controller._catalog.rollout_of(NAME)
        if rollout is not None:
            promote = self.random.random() < 0.6
            steer = self.world.controller.promote if promote else self.world.controller.abort
            self._call(steer(rollout.id, "bob"))

    async def count(self) -> None:
        """Requests of a trial are answered well, or fail."""
        gateway = self.random.choice(self.world.gateways)
        for rollout in gateway.routes.trials:
            failed = self.random.random() < 0.2
            for _ in range(4):
                gateway.ledger.answered(rollout, "candidate", 0.001, failed=failed)

    # Faults

    async def lose_messages(self) -> None:
        self.link.loss = self.random.choice([0.0, 0.1, 0.4])

    async def deliver_late(self) -> None:
        """A report arrives that its sender has given up, at whichever controller runs now."""
        if self.link.late:
            report = self.link.late.pop(self.random.randrange(len(self.link.late)))
            self._call(self.world.controller.sync(report))
            self.seen["late"] += 1

    async def cut_off(self) -> None:
        kind, count = self.random.choice(
            [("engine", len(self.world.engines)), ("gateway", len(self.world.gateways))]
        )
        self.link.cut_off.add(f"{kind}{self.random.randrange(count)}")

    async def reconnect(self) -> None:
        self.link.cut_off.clear()

    async def let_leases_run_out(self) -> None:
        await asyncio.sleep(1.2 * LEASE_SECONDS)

    async def break_next_version(self) -> None:
        engine, _ = self.random.choice(self.engines)
        highest = self.world.controller._catalog.records[NAME].highest
        engine.broken[f"{NAME}@{highest + 1}"] = "the GPU is full"

    async def hold_up_an_engine(self) -> None:
        engine, _ = self.random.choice(self.engines)
        if engine.gate.is_set():
            engine.gate.clear()
        else:
            engine.gate.set()

    async def add_engine(self) -> None:
        if len(self.engines) < 3:
            self._start(self._add_engine())

    async def _add_engine(self) -> None:
        engine = FakeEngine(self.world.slots)
        number = len(self.world.engines)
        agent = EngineAgent(engine, self.link.of(f"engine{number}"), RETRY, self.world.pools[0])
        self.world.engines.append(engine)
        self.world.engine_agents.append(agent)
        await agent.start()
        self.engines.append((engine, agent))
        self.seen["late engines"] += 1

    async def replace_engine(self) -> None:
        """One is killed, and a new one starts in its place."""
        if len(self.engines) > 1:
            engine, agent = self.engines.pop(self.random.randrange(len(self.engines)))
            self.link.cut_off.add(f"engine{self.world.engines.index(engine)}")
            self.long = [each for each in self.long if each[0] is not engine]
            await agent.stop()
            self._start(self._add_engine())

    async def replace_gateway(self) -> None:
        if len(self.world.gateways) == 2:
            place = self.random.randrange(2)
            self._start(self._replace_gateway(self.world.gateways[place]))

    async def _replace_gateway(self, old: GatewayAgent) -> None:
        new = GatewayAgent(self.link.of("another gateway"), RETRY)
        await new.start()
        with contextlib.suppress(ValueError):  # another one was quicker
            self.world.gateways[self.world.gateways.index(old)] = new
            await old.stop()
            self.seen["gateways"] += 1
            return
        await new.stop()

    async def restart_controller(self) -> None:
        await self._cut_short(self.calls)
        await self.world.kill_controller()
        await self.world.start_controller()
        self.seen["restarts"] += 1

    # What has to hold

    def check(self) -> None:
        """A gateway with a lease routes to nothing that an engine lacks which the controller has heard all along."""
        sound = [engine for engine, agent in self.engines if self._is_sound(engine, agent)]
        for gateway in self.world.gateways:
            if gateway.degraded:
                continue
            stable = gateway.routes.named(NAME)
            self.stable.add(stable.ensemble.version)
            keys = {stable.key}
            if stable.trial is not None:
                keys.add(stable.trial.candidate.id)
                if stable.trial.strategy.kind == "canary":
                    self.tried.add(stable.trial.candidate.version)
            for engine in sound:
                assert keys <= self._usable(engine), (keys, engine.held.keys(), engine._releasing)
                self.seen["checked"] += 1

    @staticmethod
    def _usable(engine: FakeEngine) -> set[str]:
        """What the engine holds and is not about to release."""
        return engine.held.keys() - engine._releasing

    def _is_sound(self, engine: FakeEngine, agent: EngineAgent) -> bool:
        self.link.note_silence(agent.participant)
        controller = self.world.controller
        if agent.participant in self.link.silent:
            assigned = {each.version.key for each in controller._catalog.assigned()}
            known = controller._participants.get(agent.participant)
            heard = monotonic() - self.link.heard[agent.participant] < SILENT_SECONDS
            if known is not None and heard and assigned <= self._usable(engine):
                self.link.silent.discard(agent.participant)
        return agent.ready and agent.participant not in self.link.silent

    def check_is_committed_everywhere(self, version: int) -> None:
        """A change that was waited for is what every gateway with a lease routes to."""
        catalog = self.world.controller._catalog
        latest = catalog.rollout_of(NAME)
        if catalog.records[NAME].active != version or (latest and latest.to_version != version):
            return  # the next change is under way already
        routed = {
            each.routes.named(NAME).ensemble.version
            for each in self.world.gateways
            if not each.degraded
        }
        assert routed <= {version}
        self.seen["waited for"] += 1

    async def check_that_calm_settles_it(self) -> None:
        """Once nothing is lost any more, all gateways route to the version that was committed last, engines hold what
        is wanted and nothing else, and every request is answered by it."""
        world = self.world
        self.link.loss = 0
        self.link.cut_off.clear()
        for engine in world.engines:
            engine.broken.clear()
            engine.gate.set()
        while self.long:
            await self.end_long_answer()
        await until(self._changes_have_ended)
        await asyncio.gather(*self.calls, *self.starting)

        active = f"{NAME}@{await world.active()}"
        await until(lambda: world.routed() == [active] * len(world.gateways))
        await until(lambda: not any(gateway.routes.trials for gateway in world.gateways))
        await until(self._engines_hold_what_is_wanted)
        for gateway in world.gateways:
            for engine, _ in self.engines:
                version = await engine.answer(gateway.routes.resolve(NAME).key)
                assert version is not None
                assert version.key == active
        await self._check_what_was_routed_to()

    def _engines_hold_what_is_wanted(self) -> bool:
        wanted = {each.version.key for each in self.world.controller._catalog.assigned()}
        return all(set(engine.held) == wanted for engine, _ in self.engines)

    async def _changes_have_ended(self) -> bool:
        """Whether every call has been answered and no rollout is left. Trials that nobody decides go on for an hour:
        they are aborted."""
        # Looked at before the rollouts: a call that is not answered yet may still begin one.
        answered = all(each.done() for each in (*self.calls, *self.starting))
        rollouts = await self.world.controller.rollouts()
        assert not isinstance(rollouts, Refusal)
        for rollout in rollouts:
            if rollout.state in ("shadowing", "canarying"):
                await self.world.controller.abort(rollout.id, "bob")
        return answered and all(rollout.state in ("done", "aborted") for rollout in rollouts)

    async def _check_what_was_routed_to(self) -> None:
        rollouts = await self.world.controller.rollouts()
        assert not isinstance(rollouts, Refusal)
        self.seen.update(rollout.state for rollout in rollouts)
        committed = {each.to_version for each in rollouts if each.state == "done"}
        assert self.stable <= committed | {1}
        assert self.tried <= {each.to_version for each in rollouts if each.strategy == "canary"}

    def _call(self, call: Coroutine[Any, Any, object]) -> None:
        """Somebody asks the controller, and the program goes on."""
        self.calls.append(asyncio.create_task(call))

    def _start(self, participant: Coroutine[Any, Any, None]) -> None:
        self.starting.append(asyncio.create_task(participant))

    @staticmethod
    async def _cut_short(tasks: list[asyncio.Task[Any]]) -> None:
        """Raises what went wrong in those that have ended."""
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()
        for task in ended:
            task.result()
