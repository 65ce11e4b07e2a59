"""Runs the protocol's model with random interleavings of steps, lost messages, silence, late replicas, restarts,
crashes, callers who leave, writes in doubt, late writes of earlier incarnations, and engines that raise.

An interleaving is a program of bytes. Hypothesis generates the programs, and shrinks one that fails.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from serve.control.rollout.state import ENDED, TRANSITIONS, UNCOMMITTED, NextStep, Rollout, State
from tests.serve.control.pieces import LEASE, NAME, Node, Program
from tests.serve.control.rollout.protocol import Protocol

PROGRAMS = st.binary(min_size=300, max_size=300)
"""A step uses two or three bytes."""


def run(interleavings: int) -> Counter[str]:
    """Run this many random programs. Returns how often each event happened in all of them."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=interleavings,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(PROGRAMS)
    def interleave(data: bytes) -> None:
        note(f"the program: {data.hex()}")
        protocol = Protocol(Program(data))
        seen.update(protocol.run())
        seen["interleavings"] += 1
        if data[0] % 8 == 0:
            protocol.check_that_calm_settles_it()

    interleave()
    return seen


RARE = (
    *("passed", "promote", "abort", "crashes", "compared", "raised"),
    *("disconnected", "done for nobody", "doubts", "written after all", "late writes", "unwritten"),
)


def check_that_everything_happened(seen: Counter[str], least: int) -> None:
    states = set(State) - {State.PREPARING}
    rare = {name: seen[name] for name in (*states, *RARE)}
    assert min(rare.values()) >= least, rare


def test_random_interleavings() -> None:
    """Gateways never route to a version that a live engine does not hold, no version goes live that has not passed, and
    the active version is always known."""
    check_that_everything_happened(run(1500), 5)


@pytest.mark.soak
def test_a_hundred_thousand_random_interleavings() -> None:
    seen = run(100_000)
    print(f"\n{dict(sorted(seen.items()))}")
    check_that_everything_happened(seen, 1000)


@pytest.mark.parametrize("strategy", [0, 1], ids=["commit", "trial"])
def test_an_engine_that_fails_while_a_write_is_in_doubt(strategy: int) -> None:
    """An engine comes back and cannot load the candidate, after the step was decided and before it is written. Gateways
    ask for the candidate then; the engine answers that it lacks it."""
    protocol = settled()
    back, other, *gateways = protocol.nodes
    protocol.program = Program(bytes([strategy]))
    protocol.ask()
    for _ in range(3):  # the first engine is cut off, and its lease runs out
        protocol.now += LEASE // 3
        for node in (other, *gateways):
            protocol.sync_with(node, lost=False)
    protocol.load_next(other, failing=False)
    protocol.sync_with(other, lost=False)
    protocol.program = Program(bytes([0, 31]))
    protocol.drive()
    assert protocol.doubt is not None
    protocol.sync_with(back, lost=False)
    protocol.load_next(back, failing=True)
    assert back.sound
    protocol.program = Program(bytes([1]))
    protocol.settle()
    check_that_an_engine_lacks(protocol, back)


def test_a_restart_that_does_not_know_of_an_abort() -> None:
    """An abort is shown before it is written, engines release the candidate, and the controller restarts. The trial
    goes on. Gateways ask for it before engines have loaded it again; the engines answer that they lack it."""
    protocol = settled()
    protocol.program = Program(bytes([1]))
    protocol.ask()
    protocol.calm_round()
    protocol.calm_round()
    protocol.drive()
    rollout = protocol.running["r1"]
    assert rollout.state is State.CANARYING
    rollout.decision, rollout.decided_by = "abort", "bob"
    protocol.program = Program(bytes([0, 23]))
    protocol.drive()
    for _ in range(3):
        protocol.calm_round()
    engine = protocol.nodes[0]
    assert rollout.candidate not in engine.held
    protocol.crash_controller()
    check_that_an_engine_lacks(protocol, engine)


def test_what_a_commit_makes_warm_no_longer_drains_after_a_crash() -> None:
    """A gateway has not heard of the commit, and still sends requests to the version that was warm before it."""
    protocol = Protocol(Program(bytes([1])))  # one version stays warm
    protocol.ask()
    protocol.check_that_calm_settles_it()
    engines = [node for node in protocol.nodes if node.kind == "engine"]
    assert protocol.catalog.assignments.role(f"{NAME}@1") == "warm"
    protocol.ask()
    for engine in engines:
        protocol.sync_with(engine, lost=False)
        while engine.todo():
            protocol.load_next(engine, failing=False)
        protocol.sync_with(engine, lost=False)
    protocol.program = Program(bytes([0, 0, 31]))
    protocol.drive()
    assert (protocol.incarnation, protocol.catalog.records[NAME].active) == (2, 3)
    for engine in engines:
        protocol.sync_with(engine, lost=False)
    protocol.unload()
    protocol.check()
    protocol.check_that_calm_settles_it()
    assert all(engine.held == {f"{NAME}@2", f"{NAME}@3"} for engine in engines)


def settled() -> Protocol:
    """All have heard of version 1, and hold it."""
    protocol = Protocol(Program(b""))
    for _ in range(3):
        protocol.calm_round()
    return protocol


def check_that_an_engine_lacks(protocol: Protocol, engine: Node) -> None:
    """Gateways send requests to version 2, this engine answers that it lacks it, and in the end all agree again."""
    key = f"{NAME}@2"
    for node in protocol.nodes:
        if node.kind == "gateway":
            protocol.sync_with(node, lost=False)
            assert key in node.routed
    assert engine.lacks == key
    protocol.check()
    protocol.check_that_calm_settles_it()


def test_a_rollout_takes_no_step_that_the_machine_does_not_have() -> None:
    rollout = Rollout("r", NAME, 1, 2, "swap", "ada", "", "")
    for state in State:
        rollout.state = state
        for step in set(State) - TRANSITIONS[state]:
            with pytest.raises(ValueError, match="cannot go from"):
                rollout.advance(NextStep(step), "")


def test_what_is_committed_is_never_aborted() -> None:
    reached = {State.COMMITTING}
    while more := {step for state in reached for step in TRANSITIONS[state]} - reached:
        reached |= more
    assert State.ABORTED not in reached
    assert reached - ENDED == set(State) - ENDED - UNCOMMITTED
