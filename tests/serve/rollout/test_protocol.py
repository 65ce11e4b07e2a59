"""The protocol under random interleavings of steps, lost messages, silence, restarts and crashes.

Real are the state machine, the plan, the leases and what the controller concludes from reports; modelled are the
clock, the messages and the participants, by the rules that the agents follow.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from serve.bundle import AdapterRef, Ensemble, FusionSpec, Member
from serve.engine.interface import Probe
from serve.rollout.catalog import Catalog
from serve.rollout.driver import gather_facts
from serve.rollout.messages import AssignedVersion, Kind, PrepareResult, Report
from serve.rollout.participants import Participants
from serve.rollout.records import EnsembleRecord, VersionRecord
from serve.rollout.state import BUSY, ENDED, TRANSITIONS, Rollout, State, Step, next_step
from serve.rollout.store import Store

LEASE = 30
TIMEOUT = 60
SLOTS = 9
NAME = "intents"


def version(number: int) -> VersionRecord:
    digest = f"sha256:{number % 3:064x}"
    member = Member(name="a", adapters=[AdapterRef(adapter="x", digest=digest)])
    ensemble = Ensemble(
        format=1,
        name=NAME,
        version=number,
        task="classification",
        members=[member],
        fusion=FusionSpec(method="average"),
        labels=["yes", "no"],
    )
    return VersionRecord(ensemble, "test", "")


@dataclass
class Node:
    """An engine or a gateway."""

    name: str
    kind: Kind
    sequence: int = 0
    seen: int = 0
    lease_until: int = -1
    desired: dict[str, AssignedVersion] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    results: dict[str, PrepareResult] = field(default_factory=dict)
    sound: bool = False
    """Engines: all that was desired has been loaded, and the lease has not run out since."""

    def report(self) -> Report:
        self.sequence += 1
        return Report(
            self.name,
            self.kind,
            self.sequence,
            self.seen,
            ready=self.sound,
            prepared=dict(self.results),
            holding=tuple(self.held),
        )

    def todo(self) -> list[AssignedVersion]:
        """What an engine has to prepare, by the rule of `EngineAgent`."""
        return [each for key, each in self.desired.items() if not self._settled(key, each)]

    def _settled(self, key: str, assigned: AssignedVersion) -> bool:
        if assigned.attempt is None:
            return key in self.held
        result = self.results.get(key)
        return result is not None and result.attempt == assigned.attempt


class Protocol:
    """One random run."""

    def __init__(self, seed: int, store: Store) -> None:
        self.random = Random(seed)
        self.store = store
        self.keep_warm = self.random.randint(0, 2)
        self.now = 0
        self.life = 0
        self.epoch = 0
        self.durable = EnsembleRecord(NAME, 1, 0, (), {1: version(1)})
        self.written: dict[str, Rollout] = {}
        self.seen: Counter[str] = Counter()
        self.start_controller()
        self.nodes: list[Node] = []
        for kind in ("engine", "engine", "gateway", "gateway"):
            self.add_node(kind)

    def run(self, steps: int) -> Counter[str]:
        actions = {
            self.sync: 40,
            self.load: 12,
            self.unload: 6,
            self.drive: 12,
            self.pass_time: 12,
            self.start_rollout: 3,
            self.crash_controller: 0.3,
            self.restart_node: 0.3,
        }
        for action in self.random.choices(list(actions), list(actions.values()), k=steps):
            action()
            self.check()
        return self.seen

    # The controller

    def start_controller(self) -> None:
        self.life += 1
        self.participants = Participants(LEASE, {})
        self.settled_at = self.now + (LEASE if self.life > 1 else 0)
        self.catalog = Catalog({NAME: self.durable}, self.store, self.life, self.keep_warm, SLOTS)
        self.running: dict[str, Rollout] = {}
        self.commits: dict[str, int] = {}
        self.began: dict[str, int] = {}
        for rollout in self.written.values():
            if rollout.state is State.PREPARING:
                rollout.advance(Step(State.ABORTED, "restarted"), "")
            elif rollout.state not in ENDED:
                again = Rollout(**vars(rollout))
                self.catalog.resumed(again)
                self.commits[again.id] = self.catalog.assignments.revision
                self.running[again.id], self.began[again.id] = again, self.now

    def crash_controller(self) -> None:
        self.start_controller()

    def start_rollout(self) -> None:
        record = self.durable
        if any(rollout.state in BUSY for rollout in self.running.values()):
            return
        back = bool(record.previous) and self.random.random() < 0.3
        number = record.previous[-1] if back else record.highest + 1
        target = record.versions[number] if back else version(number)
        action = "rollback" if back else "swap"
        id = f"r{len(self.written)}"
        rollout = Rollout(id, NAME, record.active, number, "immediate", action, "ada", "", "")
        self.durable = record.with_version(target)
        self.written[id] = Rollout(**vars(rollout))
        self.catalog.started(rollout, target)
        self.running[id], self.began[id] = rollout, self.now

    def drive(self) -> None:
        """The next step of a rollout, if there is one; seldom a crash between writing and showing."""
        if not self.running:
            return
        rollout = self.random.choice(list(self.running.values()))
        facts = gather_facts(
            rollout,
            self.participants,
            self.catalog.assignments,
            self.commits.get(rollout.id),
            settled=self.now >= self.settled_at,
            overdue=self.now >= self.began[rollout.id] + TIMEOUT,
        )
        step = next_step(rollout.state, facts)
        if step is None:
            return
        history: tuple[int, ...] = ()
        if step.state is State.COMMITTING:
            record = self.catalog.record(NAME)
            back = rollout.action == "rollback"
            history = (
                record.history_after_rollback(rollout.to_version)
                if back
                else record.history_after_swap()
            )
            self.epoch += 1
            self.durable = self.durable.committed(rollout.to_version, self.epoch, history)
        self.written[rollout.id].advance(step, "")
        self.seen[step.state] += 1
        if self.random.random() < 0.02:
            self.start_controller()
            return
        rollout.advance(step, "")
        if step.state is State.COMMITTING:
            self.catalog.committed(rollout, self.epoch, history)
            self.commits[rollout.id] = self.catalog.assignments.revision
        if rollout.state in ENDED:
            self.catalog.ended(rollout)
            del self.running[rollout.id]

    def pass_time(self) -> None:
        self.now += self.random.choice([1, 1, 1, 1, LEASE // 4])
        self.keep_house()

    def keep_house(self) -> None:
        self.participants.expire(self.now)
        assignments = self.catalog.assignments
        if self.now >= self.settled_at:
            seen = self.participants.seen_by_gateways()
            assignments.seen_by_gateways(assignments.revision if seen is None else seen)

    # The participants

    def add_node(self, kind: str) -> None:
        self.nodes.append(Node(f"n{self.random.random()}", kind))  # type: ignore[arg-type]

    def restart_node(self) -> None:
        node = self.random.choice(self.nodes)
        self.nodes.remove(node)
        self.add_node(node.kind)

    def sync(self) -> None:
        """A report arrives; seldom, its answer is lost."""
        node = self.random.choice(self.nodes)
        if self.now >= node.lease_until:
            node.sound = False
        self.participants.hear(node.report(), self.now)
        self.keep_house()
        if self.random.random() < 0.1:
            return
        node.lease_until = self.now + LEASE
        node.desired = {each.version.key: each for each in self.catalog.assigned()}
        node.seen = self.catalog.assignments.revision

    def load(self) -> None:
        """An engine prepares a version that it is to hold; seldom, a candidate fails."""
        engine = self.random.choice([node for node in self.nodes if node.kind == "engine"])
        for each in engine.todo()[:1]:
            key = each.version.key
            if each.role == "candidate" and self.random.random() < 0.1:
                engine.results[key] = PrepareResult(each.attempt, error="broken")
            else:
                probes = tuple(Probe(d, (-1.0,), 1.0) for d in each.version.ensemble.digests)
                engine.held.add(key)
                engine.results[key] = PrepareResult(each.attempt, probes)
        if engine.desired and not engine.todo() and self.now < engine.lease_until:
            engine.sound = True

    def unload(self) -> None:
        """Engines let go of what they need not hold."""
        for engine in self.nodes:
            for key in engine.held - set(engine.desired):
                engine.held.discard(key)
                engine.results.pop(key, None)

    # What must always hold

    def check(self) -> None:
        assert self.catalog.active()[NAME] == self.durable.active
        assert sum(rollout.state in BUSY for rollout in self.running.values()) <= 1
        live = [node for node in self.nodes if self.now < node.lease_until]
        for gateway in live:
            if gateway.kind == "gateway":
                routed = {key for key, each in gateway.desired.items() if each.routable}
                for engine in live:
                    if engine.sound:
                        self.seen["compared"] += 1
                        assert routed <= engine.held, (gateway, engine)


def test_gateways_never_route_to_what_a_live_engine_does_not_hold(tmp_path: Path) -> None:
    """As long as both hold their leases. And whatever happens, it is known what is active."""
    store = Store(tmp_path)
    seen: Counter[str] = Counter()
    for seed in range(300):
        try:
            seen += Protocol(seed, store).run(400)
        except AssertionError as error:
            raise AssertionError(f"the run with seed {seed} fails: {error}") from error
    assert min(seen[state] for state in ("done", "aborted", "compared")) > 100, seen


def test_a_rollout_takes_no_step_that_the_machine_does_not_have() -> None:
    rollout = Rollout("r", NAME, 1, 2, "immediate", "swap", "ada", "", "")
    for state in State:
        rollout.state = state
        for step in set(State) - TRANSITIONS[state]:
            with pytest.raises(ValueError, match="cannot go from"):
                rollout.advance(Step(step), "")
