"""The protocol under random interleavings of steps, lost messages, silence, late replicas, restarts and crashes,
callers who leave, writes in doubt, late writes of servers that were taken over, and engines that raise.

The interleavings are programs of bytes that Hypothesis makes, and makes smaller when one fails.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serve.control.rollout.state import ENDED, TRANSITIONS, UNCOMMITTED, NextStep, Rollout, State
from tests.serve.control.pieces import NAME, Program
from tests.serve.control.rollout.protocol import Protocol

PROGRAMS = st.binary(min_size=300, max_size=300)
"""Two or three bytes are a step."""


def run(interleavings: int) -> Counter[str]:
    """So many random programs; what happened in all of them."""
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
    """Gateways never route to what a live engine does not hold, nothing goes live that has not
    passed, and whatever happens, it is known what is active."""
    check_that_everything_happened(run(1500), 5)


@pytest.mark.soak
def test_a_hundred_thousand_random_interleavings() -> None:
    seen = run(100_000)
    print(f"\n{dict(sorted(seen.items()))}")
    check_that_everything_happened(seen, 1000)


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
