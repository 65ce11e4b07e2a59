"""A model of the rollout protocol, stepped through by the bytes of a program.

The state machine, the gates, the plan, the leases and the facts that the controller draws from reports are the real
ones. The clock, the messages, the database and the participants are modelled; participants follow the rules of agents.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from serve.control.catalog import Catalog
from serve.control.database.comparison import TakenOver
from serve.control.driver import gather_facts
from serve.control.participants import Participants
from serve.control.records import EnsembleRecord
from serve.control.rollout.gates import judge
from serve.control.rollout.state import (
    BUSY,
    ENDED,
    TRIALS,
    UNCOMMITTED,
    NextStep,
    Rollout,
    State,
    next_step,
)
from serve.engine.interface import Probe
from serve.protocol.capacity import Capacity, CapacityPlan, CapacityPlans
from serve.protocol.figures import total
from serve.protocol.messages import ParticipantKind, PrepareResult
from serve.protocol.strategy import Strategy
from tests.serve.control.pieces import (
    LEASE,
    MAX_SECONDS,
    NAME,
    SLOTS,
    STRATEGIES,
    TIMEOUT,
    Node,
    NoFiles,
    Program,
    version,
)
from tests.serve.control.stored import Doubt, Stored, copy


@dataclass
class Admission:
    """An accepted change that is being verified. No other change of the ensemble starts meanwhile."""

    request: int
    back: bool
    strategy: Strategy
    watched: bool = True
    """Whether the caller still waits."""


class Protocol:
    """One run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.keep_warm = program.below(3)
        self.now = 0
        self.incarnation = 0
        self.joined = 0
        first = EnsembleRecord(NAME, 1, 0, (), {1: version(1)})
        self.stored = Stored(first, {}, Counter({1: 1}))
        self.counted: Counter[str] = Counter()
        """Rollout -> requests that its candidate really got."""
        self.failed: Counter[str] = Counter()
        """Rollout -> requests that really failed."""
        self.requests = 0
        self.answered = 0
        """How many changes were asked for (`requests`), and how many have begun or were refused (`answered`)."""
        self.doubt: Doubt | None = None
        self.late: list[Callable[[], object]] = []
        """Writes of earlier incarnations that are still under way."""
        self.unwritten: dict[str, Rollout] = {}
        """Ends of rollouts that are shown and not in the database yet."""
        self.seen: Counter[str] = Counter()
        self.nodes: list[Node] = []
        self.start_controller()
        for kind in ("engine", "engine", "gateway", "gateway"):
            self.add_node(kind)
        if program.below(4):
            self.calm_round()
        self.actions = self._table()

    def _table(self) -> list[Callable[[], None]]:
        weights: dict[Callable[[], None], int] = {
            self.sync: 82,
            self.load: 38,
            self.drive: 38,
            self.pass_time: 18,
            self.traffic: 24,
            self.unload: 9,
            self.ask: 22,
            self.admit: 6,
            self.disconnect: 2,
            self.decide: 2,
            self.write_figures: 3,
            self.replace_node: 3,
            self.add_engine: 1,
            self.crash_controller: 2,
            self.lose_engine: 2,
            self.raise_in_an_engine: 2,
            self.write_late: 2,
        }
        assert sum(weights.values()) == 256, "a byte is an action"
        return [action for action, weight in weights.items() for _ in range(weight)]

    def run(self) -> Counter[str]:
        while not self.program.over:
            self.program.of(self.actions)()
            self.check()
        return self.seen

    # The controller

    def start_controller(self) -> None:
        """By the rules of `Driver.recover`. What is in doubt has ended before a new incarnation begins. A trial whose
        end was not written goes on, although engines may have released its candidate."""
        self.let_go()
        self.incarnation = self.stored.incarnation = self.stored.incarnation + 1
        self.participants = Participants(LEASE, {})
        self.settled_at = self.now + (LEASE if self.incarnation > 1 else 0)
        self.catalog = Catalog(
            {NAME: self.stored.record},
            NoFiles(),  # type: ignore[arg-type]
            self.incarnation,
            self.keep_warm,
            CapacityPlans({"": CapacityPlan(Capacity(SLOTS), NoFiles().adapter)}, lambda name: ""),
        )
        forgotten = {id for id, end in self.unwritten.items() if end.state is State.ABORTED}
        self.running: dict[str, Rollout] = {}
        self.commits: dict[str, int] = {}
        self.unwritten = {}
        self.admission: Admission | None = None
        for rollout in self.stored.rollouts.values():
            late = rollout.state is State.ABORTED and rollout.strategy.kind != "immediate"
            if late and self.now - int(rollout.updated) < 2 * LEASE:
                self.catalog.aborted_lately(rollout)
        for rollout in list(self.stored.rollouts.values()):
            again = copy(rollout)
            if rollout.state is State.PREPARING:
                again.advance(NextStep(State.ABORTED, "restarted"), str(self.now))
                self.stored.advanced(self.incarnation, again)
            elif rollout.state not in ENDED:
                self.catalog.resumed(again)
                if not again.trial:
                    self.commits[again.id] = self.catalog.assignments.revision
                self.running[again.id] = again
                if again.id in forgotten:
                    self.unload()  # what engines were to release they have released by now
                    self.note_who_lacks(again.candidate)

    def let_go(self) -> None:
        """The controller dies, or another one takes over. Writes that it was about to make may come late."""
        if self.incarnation == 0:
            return
        if self.doubt is not None and self.program.one_in(2):
            self.doubt.carry_out()
        self.doubt = None
        incarnation, record = self.incarnation, self.catalog.records[NAME]
        self.answered = self.requests  # callers are told that the server is gone
        for rollout in self.running.values():
            state = copy(rollout)
            self.late += [lambda each=state: self.stored.advanced(incarnation, each)]  # type: ignore[misc]
            promoted = replace(copy(rollout), decision="promote", decided_by="late")
            self.late += [lambda each=promoted: self.stored.decided(incarnation, each)]  # type: ignore[misc]
            if rollout.state in UNCOMMITTED:
                going = copy(rollout)
                going.state = State.COMMITTING
                self.late.append(partial(self.stored.commit, incarnation, going, record, (1,)))
        if self.admission is not None:
            begun = self._rollout(self.admission, record)
            new = version(record.highest + 1, self.admission.request)
            self.late += [lambda: self.stored.begin(incarnation, begun, new)]

    def write_late(self) -> None:
        """A write of an earlier incarnation arrives, and changes nothing."""
        if not self.late:
            return
        write = self.late.pop(self.program.below(len(self.late)))
        before = self.stored.image()
        with suppress(TakenOver):
            write()
            raise AssertionError("a server that was taken over has written")
        assert self.stored.image() == before
        self.seen["late writes"] += 1

    def crash_controller(self) -> None:
        self.seen["crashes"] += 1
        self.start_controller()

    def ask(self) -> None:
        """Ask for a change. It is refused at once while there is another one."""
        record = self.catalog.records[NAME]
        busy = any(rollout.state in BUSY for rollout in self.running.values())
        if busy or self.admission is not None:
            return
        back = bool(record.previous) and self.program.one_in(3)
        strategy = STRATEGIES[0] if back else self.program.of(STRATEGIES)
        self.requests += 1
        self.admission = Admission(self.requests, back, strategy)
        if not self.program.one_in(4):
            self.admit()

    def disconnect(self) -> None:
        """A caller leaves. Its change goes on."""
        if self.admission is not None and self.admission.watched:
            self.admission.watched = False
            self.seen["disconnected"] += 1

    def _rollout(self, admission: Admission, record: EnsembleRecord) -> Rollout:
        return Rollout(
            id=f"r{admission.request}",
            ensemble=NAME,
            from_version=record.active,
            to_version=record.previous[-1] if admission.back else record.highest + 1,
            strategy=admission.strategy,
            action="rollback" if admission.back else "swap",
            actor="ada",
            created="",
            updated=str(self.now),
        )

    def admit(self) -> None:
        """Start the verified change, by the rules of `Acceptance` and `Driver.begin`, or refuse it."""
        admission = self.admission
        if admission is None or self.doubt is not None:
            return
        if self.program.one_in(8):
            self._end_admission()
            return
        for earlier in list(self.unwritten.values()):
            self.stored.advanced(self.incarnation, self.unwritten.pop(earlier.id))
        record = self.catalog.records[NAME]
        rollout = self._rollout(admission, record)
        known = record.versions.get(rollout.to_version)
        target = known or version(rollout.to_version, admission.request)
        incarnation = self.incarnation

        def learn(written: bool) -> None:
            if written:
                self.catalog.started(rollout, target)
                self.running[rollout.id] = rollout
            self._end_admission()

        new = None if known else target
        self._write(lambda: self.stored.begin(incarnation, rollout, new), learn, doubtful=24)

    def _end_admission(self) -> None:
        assert self.admission is not None
        self.answered += 1
        if not self.admission.watched:
            self.seen["done for nobody"] += 1
        self.admission = None

    def _write(
        self, write: Callable[[], object], learn: Callable[[bool], None], doubtful: int
    ) -> None:
        """Write, then show. Seldom the connection is lost during the commit, and the outcome is unknown for a while."""
        if self.program.one_in(doubtful):
            self.seen["doubts"] += 1
            self.doubt = Doubt(write, learn)
        else:
            write()
            learn(True)

    def settle(self) -> None:
        """End the transaction in doubt, and tell the waiting server its outcome."""
        doubt = self.doubt
        assert doubt is not None
        written = self.program.one_in(2)
        if written:
            doubt.carry_out()
            self.seen["written after all"] += 1
        self.doubt = None
        doubt.learn(written)

    def decide(self) -> None:
        """Decide by the rules of `Driver.decide`. Seldom the controller dies right after the write."""
        for rollout in self.running.values():
            if rollout.state in UNCOMMITTED and self.doubt is None:
                promote = rollout.state in TRIALS and not self.program.one_in(3)
                if not promote and not self.program.one_in(3):
                    continue
                decision = "promote" if promote else "abort"
                draft = replace(copy(rollout), decision=decision, decided_by="bob")  # type: ignore[arg-type]
                self.stored.decided(self.incarnation, draft)
                self.seen[decision] += 1
                if self.program.one_in(4):
                    self.start_controller()
                    return
                rollout.decision, rollout.decided_by = decision, "bob"  # type: ignore[assignment]

    def write_figures(self) -> None:
        for rollout in self.running.values() if self.doubt is None else ():
            if rollout.id not in self.unwritten:
                self.stored.advanced(self.incarnation, rollout)

    def drive(self) -> None:
        """Take the next step of a rollout, if there is one. Seldom the controller dies between writing and showing
        it."""
        if self.doubt is not None:
            if self.program.one_in(2):
                self.settle()
            return
        if not self.running:
            return
        rollout = self.program.of(list(self.running.values()))
        seconds = self.now - int(rollout.updated)
        facts = gather_facts(
            rollout,
            self.participants,
            self.catalog.assignments,
            self.commits.get(rollout.id),
            pool="",
            settled=self.now >= self.settled_at,
            overdue=seconds >= TIMEOUT,
            seconds=seconds,
        )
        step = next_step(rollout, facts)
        if step is None:
            return
        if step.state is State.DRAINING:
            self.check_is_committed_everywhere(rollout)
        draft = copy(rollout)
        draft.advance(step, str(self.now))
        if step.state is State.COMMITTING:
            self.check_may_commit(rollout, seconds)
            self._commit(rollout, step, draft)
        elif step.state not in TRIALS and self.program.one_in(24):
            self.seen["unwritten"] += 1
            self.unwritten[rollout.id] = draft
            self._show(rollout, step)
        else:
            incarnation = self.incarnation

            def advance() -> None:
                self.stored.advanced(incarnation, draft)
                if step.state in TRIALS:
                    self.note_who_lacks(rollout.candidate)

            def learn(written: bool) -> None:
                self.unwritten.pop(rollout.id, None)
                if not written and step.state in TRIALS:
                    return  # tried again
                if not written:
                    self.unwritten[rollout.id] = draft
                self._show(rollout, step)

            self._write(advance, learn, doubtful=32)

    def _commit(self, rollout: Rollout, step: NextStep, draft: Rollout) -> None:
        """Commit a rollout. If the write fails, abort it."""
        record, incarnation = self.catalog.records[NAME], self.incarnation
        if rollout.action == "rollback":
            history = record.history_after_rollback(rollout.to_version)
        else:
            history = record.history_after_swap()

        def learn(written: bool) -> None:
            self.unwritten.pop(rollout.id, None)
            if written:
                self._show(rollout, step, history)
                return
            abort = NextStep(State.ABORTED, "the database failed", 503)
            aborted = copy(rollout)
            aborted.advance(abort, str(self.now))
            self.stored.advanced(incarnation, aborted)
            self._show(rollout, abort)

        def commit() -> None:
            self.stored.commit(incarnation, draft, record, history)
            self.note_who_lacks(rollout.candidate)

        self._write(commit, learn, doubtful=8)

    def note_who_lacks(self, candidate: str) -> None:
        """Gateways may send requests to the candidate from now on. Engines without it answer that they lack it. The
        controller does not know of them: the facts that it decided on are older."""
        for engine in self._engines():
            if candidate not in engine.held:
                engine.lacks, engine.sound = candidate, False

    def _show(self, rollout: Rollout, step: NextStep, history: tuple[int, ...] = ()) -> None:
        self.seen[step.state] += 1
        if self.program.one_in(32):
            self.start_controller()
            return
        rollout.advance(step, str(self.now))
        if step.state is State.COMMITTING:
            self.catalog.committed(rollout, self.stored.epoch, history)
            self.commits[rollout.id] = self.catalog.assignments.revision
        if rollout.state in TRIALS:
            self.catalog.moved_on()
        if rollout.state in ENDED:
            self.catalog.ended(rollout)
            del self.running[rollout.id]

    def pass_time(self) -> None:
        self.now += self.program.of([1] * 16 + [LEASE // 4] * 12 + [LEASE] * 3 + [TIMEOUT])
        self.keep_house()

    def keep_house(self) -> None:
        self.participants.expire(self.now)
        assignments = self.catalog.assignments
        if self.now >= self.settled_at:
            seen = self.participants.seen_by_gateways()
            assignments.seen_by_gateways(assignments.revision if seen is None else seen)

    # The participants

    def add_node(self, kind: ParticipantKind) -> None:
        self.joined += 1
        self.nodes.append(Node(f"n{self.joined}", kind))

    def replace_node(self) -> None:
        node = self.program.of(self.nodes)
        self.nodes.remove(node)
        self.add_node(node.kind)

    def add_engine(self) -> None:
        """Scale up, at most to four."""
        if len(self._engines()) < 4:
            self.add_node("engine")

    def lose_engine(self) -> None:
        """Remove an engine for good, but never the last one."""
        engines = self._engines()
        if len(engines) > 1:
            self.nodes.remove(self.program.of(engines))

    def raise_in_an_engine(self) -> None:
        """An engine begins to raise at all requests, or stops doing so."""
        engine = self.program.of(self._engines())
        engine.raising = not engine.raising and self.program.one_in(3)

    def sync(self) -> None:
        """A report arrives. Seldom its answer is lost."""
        self.sync_with(self.program.of(self.nodes), lost=self.program.one_in(10))

    def sync_with(self, node: Node, *, lost: bool) -> None:
        if self.now >= node.lease_until:
            node.sound = False
        report = node.report()
        self.participants.hear(report, self.now)
        for id, figures in report.figures.items():
            if id in self.running and self.running[id].trial:
                self.running[id].count(node.name, figures)
        self.keep_house()
        if lost:
            return
        node.lease_until = self.now + LEASE
        if node.seen != self.catalog.assignments.revision:
            node.apply(self.catalog.assigned(), self.catalog.assignments.revision)

    def traffic(self) -> None:
        """A gateway's requests to a candidate are answered, or fail."""
        node = self.program.of(self._gateways())
        engine = self.program.of(self._engines())
        for attempt in node.trials():
            for _ in range(self.program.below(4)):
                failed = engine.raising or self.program.one_in(12)
                self.seen["raised"] += engine.raising
                self.failed[attempt] += failed
                node.ledger.answered(attempt, "candidate", 1.0, failed=failed)
                self.counted[attempt] += 1

    def load(self) -> None:
        """An engine prepares assigned versions. Seldom a candidate fails."""
        engine = self.program.of(self._engines())
        for _ in range(self.program.below(3)):
            self.load_next(engine, failing=self.program.one_in(30))

    def load_next(self, engine: Node, *, failing: bool) -> None:
        for each in engine.todo()[:1]:
            key = each.version.key
            if each.role == "candidate" and (failing or engine.raising):
                engine.held.discard(key)
                engine.results[key] = PrepareResult(each.attempt, error="broken")
            elif not engine.raising:
                probes = tuple(Probe(d, (-1.0,), 1.0) for d in each.version.ensemble.digests)
                engine.held.add(key)
                engine.results[key] = PrepareResult(each.attempt, probes)
        if engine.lacks in engine.held or self.catalog.assignments.role(engine.lacks or "") is None:
            engine.lacks = None
        ready = not engine.todo() and engine.routed <= engine.held and engine.lacks is None
        if engine.desired and ready and self.now < engine.lease_until:
            engine.sound = True

    def unload(self) -> None:
        """Engines release the versions that are not assigned to them any more."""
        for engine in self._engines():
            for key in engine.held - set(engine.desired):
                engine.held.discard(key)
                engine.results.pop(key, None)

    def _engines(self) -> list[Node]:
        return [node for node in self.nodes if node.kind == "engine"]

    def _gateways(self) -> list[Node]:
        return [node for node in self.nodes if node.kind == "gateway"]

    # What must always hold

    def check(self) -> None:
        active = self.catalog.records[NAME].active
        stored = self.stored.record
        if self.doubt is None:
            assert active == stored.active, "it is known what is active"
            mine = {
                number: each.source for number, each in self.catalog.records[NAME].versions.items()
            }
            theirs = {number: each.source for number, each in stored.versions.items()}
            assert mine == theirs, "a version is one content in memory and in the database"
            assert self.answered + (self.admission is not None) == self.requests, "all is answered"
            for id, rollout in self.running.items():
                if id not in self.unwritten:
                    assert self.stored.rollouts[id].state == rollout.state, (
                        "shown is what is written"
                    )
        assert self.stored.committed[stored.active], "what is active was committed"
        busy = sum(rollout.state in BUSY for rollout in self.running.values())
        assert busy <= 1, "one change at a time"
        engines = [node for node in self.nodes if node.sound and self.now < node.lease_until]
        for gateway in self.nodes if engines else ():
            if gateway.routed and gateway.kind == "gateway" and self.now < gateway.lease_until:
                self.seen["compared"] += len(engines)
                for engine in engines:
                    assert gateway.routed <= engine.held, (
                        f"{gateway.name} sends requests to {sorted(gateway.routed)}, and "
                        f"{engine.name} holds {sorted(engine.held)}"
                    )

    def check_may_commit(self, rollout: Rollout, seconds: int) -> None:
        """Only a rollout that was not aborted, and has passed its gates or was promoted, may commit."""
        assert self.stored.rollouts[rollout.id].decision != "abort", "it was aborted"
        engines = [node for node in self._engines() if self.now < node.lease_until]
        assert all(rollout.candidate in engine.held for engine in engines), "all have prepared it"
        figures = total(rollout.figures.values())
        assert figures.candidate.requests <= self.counted[rollout.id], "counted once"
        assert figures.candidate.errors <= self.failed[rollout.id], "counted once"
        if rollout.state in TRIALS and rollout.decision is None:
            verdict = judge(rollout.strategy, figures, seconds)
            self.seen["passed"] += 1
            assert rollout.strategy.auto_promote
            assert verdict is not None
            assert verdict.outcome == "passed"

    def check_is_committed_everywhere(self, rollout: Rollout) -> None:
        """The next request to any live gateway is answered by the new version."""
        for gateway in self._gateways():
            if self.now < gateway.lease_until:
                known = gateway.desired.get(rollout.candidate)
                assert known is not None
                assert known.role == "active"
        self.seen["committed"] += 1

    def check_that_calm_settles_it(self) -> None:
        """When no messages are lost any more and time passes, every rollout ends, and all replicas agree with the
        database."""
        deadline = self.now + 3 * MAX_SECONDS
        quiet = 0
        for node in self.nodes:
            node.raising = False
        while quiet < 8:
            assert self.now < deadline, f"they do not end: {list(self.running.values())}"
            self.now += LEASE // 3
            self.calm_round()
            for rollout in list(self.running.values()):
                if rollout.trial and not rollout.strategy.auto_promote:
                    rollout.decision, rollout.decided_by = "abort", "bob"
            self.drive()
            if self.doubt is not None:
                self.settle()
            for rollout in list(self.unwritten.values()):
                self.stored.advanced(self.incarnation, self.unwritten.pop(rollout.id))
            self.admit()
            self.check()
            quiet = 0 if self.running or self.admission else quiet + 1
        wanted = {key for key, _ in self.catalog.assignments}
        assert f"{NAME}@{self.stored.record.active}" in wanted
        assert {each.state for each in self.stored.rollouts.values()} <= ENDED
        while self.late:
            self.write_late()
        for node in self.nodes:
            if node.kind == "gateway":
                assert node.routed == wanted
                assert node.trials() == []
            else:
                assert node.held == wanted

    def calm_round(self) -> None:
        """All participants report, and do what is assigned to them."""
        for node in self.nodes:
            self.sync_with(node, lost=False)
        for engine in self._engines():
            while engine.todo():
                self.load_next(engine, failing=False)
        self.unload()
