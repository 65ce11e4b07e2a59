"""The protocol under random interleavings of steps, lost messages, silence and crashes.

Real are the state machine, the plan, the leases and what the controller concludes from reports; modelled are the
clock, the messages and the participants, by the rules that the agents follow.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from serve.bundle import AdapterRef, Ensemble, FusionSpec, Member
from serve.engine.interface import Probe
from serve.rollout.catalog import Catalog
from serve.rollout.driver import gather_facts
from serve.rollout.messages import AssignedVersion, PrepareResult, Report
from serve.rollout.participants import Participants
from serve.rollout.records import EnsembleRecord, VersionRecord
from serve.rollout.state import BUSY, ENDED, TRANSITIONS, Rollout, State, Step, next_step
from serve.rollout.store import Store

LEASE = 6
TIMEOUT = 12
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
    kind: str
    sequence: int = 0
    seen: int = 0
    lease_until: int = -1
    desired: dict[str, AssignedVersion] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    results: dict[str, PrepareResult] = field(default_factory=dict)
    sound: bool = True
    """Engines: everything routable at the last desired state is held, without a gap in the lease."""


SELDOM = st.integers(0, 7).map(lambda number: number == 7)


class Protocol(RuleBasedStateMachine):
    folder: Path
    ended: Counter[str] = Counter()
    """How rollouts ended over all runs, and how often routes were compared with engines."""

    @initialize(keep_warm=st.integers(0, 2), engines=st.integers(1, 2), gateways=st.integers(1, 2))
    def begin(self, keep_warm: int, engines: int, gateways: int) -> None:
        self.store = Store(self.folder, [])
        self.keep_warm = keep_warm
        self.now = 0
        self.life = 0
        self.durable = EnsembleRecord(NAME, 1, 0, (), {1: version(1)})
        self.written: dict[str, Rollout] = {}
        self.epochs = [0]
        self.nodes: list[Node] = []
        self.start_controller()
        for kind, count in (("engine", engines), ("gateway", gateways)):
            for _ in range(count):
                self.nodes.append(Node(f"{kind}{len(self.nodes)}", kind))

    # The controller

    def start_controller(self) -> None:
        self.life += 1
        self.participants = Participants(LEASE, {})
        self.settled_at = self.now + (LEASE if self.life > 1 else 0)
        self.catalog = Catalog({NAME: self.durable}, self.store, self.life, self.keep_warm, 9)
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

    @rule(crash=SELDOM)
    def crash_controller(self, crash: bool) -> None:
        if crash:
            self.start_controller()

    @precondition(lambda self: not any(r.state in BUSY for r in self.running.values()))
    @rule(data=st.data())
    def start_rollout(self, data: st.DataObject) -> None:
        record = self.durable
        back = record.previous and data.draw(st.booleans(), label="rollback")
        known = [number for number in record.versions if number != record.active]
        again = known and not back and data.draw(st.booleans(), label="known version")
        if back:
            target = record.versions[data.draw(st.sampled_from(record.previous))]
            if target.ensemble.version == record.active:
                return
        elif again:
            target = record.versions[data.draw(st.sampled_from(known))]
        else:
            target = version(record.highest + 1)
        number = target.ensemble.version
        rollout = Rollout(
            f"r{len(self.written)}",
            NAME,
            record.active,
            number,
            "immediate",
            "rollback" if back else "swap",
            "ada",
            "",
            "",
        )
        self.durable = record.with_version(target)
        self.written[rollout.id] = Rollout(**vars(rollout))
        self.catalog.started(rollout, target)
        self.running[rollout.id], self.began[rollout.id] = rollout, self.now

    @rule(data=st.data(), crash=SELDOM)
    def drive(self, data: st.DataObject, crash: bool) -> None:
        """Take the next step of a rollout, if there is one; `crash` between writing and showing."""
        if self.running:
            self._drive(self.running[data.draw(st.sampled_from(sorted(self.running)))], crash)

    def _drive(self, rollout: Rollout, crash: bool) -> None:
        if rollout.id not in self.running:
            return
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
        assert step.state in TRANSITIONS[rollout.state]
        if step.state is State.COMMITTING:
            record = self.catalog.record(NAME)
            if rollout.action == "rollback":
                history = record.history_after_rollback(rollout.to_version)
            else:
                history = record.history_after_swap()
            self.epochs.append(self.epochs[-1] + 1)
            self.durable = self.durable.committed(rollout.to_version, self.epochs[-1], history)
        self.written[rollout.id].advance(step, "")
        self.ended[step.state] += 1
        if crash:
            self.start_controller()
            return
        rollout.advance(step, "")
        if step.state is State.COMMITTING:
            self.catalog.committed(rollout, self.epochs[-1], history)
            self.commits[rollout.id] = self.catalog.assignments.revision
        if rollout.state in ENDED:
            self.catalog.ended(rollout)
            del self.running[rollout.id]

    @rule()
    def housekeeping(self) -> None:
        self.participants.expire(self.now)
        if self.now >= self.settled_at:
            seen = self.participants.seen_by_gateways()
            assignments = self.catalog.assignments
            assignments.seen_by_gateways(assignments.revision if seen is None else seen)

    # Participants

    @rule(data=st.data(), lost=SELDOM)
    def sync(self, data: st.DataObject, lost: bool) -> None:
        """A report arrives; its answer may be lost."""
        self._sync(data.draw(st.sampled_from(self.nodes)), lost)

    @rule(crash=SELDOM, fails=SELDOM, rounds=st.integers(1, 4))
    def everybody_acts(self, crash: bool, fails: bool, rounds: int) -> None:
        """A while without losses, so that rollouts get somewhere."""
        for _ in range(rounds):
            for node in self.nodes:
                self._sync(node, lost=False)
                self._load(node, fails)
                self._sync(node, lost=False)
            for rollout in list(self.running.values()):
                self._drive(rollout, crash)

    def _sync(self, node: Node, lost: bool) -> None:
        if self.now >= node.lease_until:
            node.sound = False
        node.sequence += 1
        report = Report(
            node.name,
            "engine" if node.kind == "engine" else "gateway",
            node.sequence,
            node.seen,
            ready=True,
            prepared=dict(node.results),
            holding=tuple(node.held),
        )
        self.participants.hear(report, self.now)
        self.housekeeping()
        if lost:
            return
        node.lease_until = self.now + LEASE
        node.desired = {each.version.key: each for each in self.catalog.assigned()}
        node.seen = self.catalog.assignments.revision

    @rule(data=st.data(), fails=SELDOM)
    def load(self, data: st.DataObject, fails: bool) -> None:
        """An engine prepares what it is to hold; a candidate fails now and then."""
        self._load(data.draw(st.sampled_from(self.nodes)), fails)

    def _load(self, engine: Node, fails: bool) -> None:
        if engine.kind != "engine":
            return
        for key, each in engine.desired.items():
            if key in engine.held if each.attempt is None else not _untried(engine, each):
                continue
            if fails and each.role == "candidate":
                engine.results[key] = PrepareResult(each.attempt, error="broken")
                continue
            probes = tuple(Probe(d, (-1.0,), 1.0) for d in each.version.ensemble.digests)
            engine.held.add(key)
            engine.results[key] = PrepareResult(each.attempt, probes)
        if engine.desired and self.now < engine.lease_until:
            engine.sound = True

    @rule()
    def unload(self) -> None:
        """Engines let go of what they need not hold."""
        for engine in self.nodes:
            for key in engine.held - set(engine.desired):
                engine.held.discard(key)
                engine.results.pop(key, None)

    @rule(data=st.data(), restart=SELDOM)
    def restart_node(self, data: st.DataObject, restart: bool) -> None:
        if not restart:
            return
        index = data.draw(st.integers(0, len(self.nodes) - 1))
        kind = self.nodes[index].kind
        self.nodes[index] = Node(f"{kind}-again-{self.now}-{index}-{len(self.epochs)}", kind)
        self.nodes[index].sound = kind == "gateway"
        self.now += 1

    @rule()
    def time_passes(self) -> None:
        self.now += 1

    # What must always hold

    @invariant()
    def what_gateways_route_to_is_loaded(self) -> None:
        """As long as both hold their leases, and the engine has not just come back."""
        for gateway in self.nodes:
            if gateway.kind != "gateway" or self.now >= gateway.lease_until:
                continue
            routed = {key for key, each in gateway.desired.items() if each.routable}
            for engine in self.nodes:
                if engine.kind == "engine" and engine.sound and self.now < engine.lease_until:
                    self.ended["compared"] += 1
                    assert routed <= engine.held, (gateway, engine)

    @invariant()
    def the_active_version_is_known(self) -> None:
        assert self.catalog.active()[NAME] == self.durable.active
        assert self.durable.active in self.durable.versions
        assert self.epochs == sorted(self.epochs)

    @invariant()
    def at_most_one_rollout_is_uncommitted(self) -> None:
        assert sum(rollout.state in BUSY for rollout in self.running.values()) <= 1


def _untried(engine: Node, assigned: AssignedVersion) -> bool:
    result = engine.results.get(assigned.version.key)
    return result is None or result.attempt != assigned.attempt


def test_random_interleavings(tmp_path: Path) -> None:
    Protocol.folder = tmp_path
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=400,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Protocol.ended["done"] > 50, "the rules hardly ever reach the end of a rollout"
    assert Protocol.ended["compared"] > 1000


def test_a_rollout_takes_no_step_that_the_machine_does_not_have() -> None:
    rollout = Rollout("r", NAME, 1, 2, "immediate", "swap", "ada", "", "")
    for state in State:
        rollout.state = state
        for step in set(State) - TRANSITIONS[state]:
            with pytest.raises(ValueError, match="cannot go from"):
                rollout.advance(Step(step), "")
