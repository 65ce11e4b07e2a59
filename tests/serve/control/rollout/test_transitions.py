"""The rollout's state machine against a table that was written by hand from docs/rollout.md: every state with every
event, also those that change nothing."""

from dataclasses import dataclass, field, replace

import pytest

from serve.control.rollout.state import Facts, NextStep, Rollout, State, next_step
from serve.engine.interface import Probe
from serve.protocol.figures import Figures, Tally
from serve.protocol.messages import PrepareResult
from serve.protocol.requests import Decision
from serve.protocol.strategy import Strategy, StrategyKind

ALLOWED = {
    "preparing": "shadowing canarying committing aborted",
    "shadowing": "committing aborted",
    "canarying": "committing aborted",
    "committing": "draining",
    "draining": "done",
    "done": "",
    "aborted": "",
}
"""Which state may follow which."""

TRIAL_SECONDS = 100
GATES = {"min_requests": 10, "max_error_rate": 0.1, "max_seconds": TRIAL_SECONDS}


def probe(*outputs: float, change: float = 0.5) -> PrepareResult:
    return PrepareResult("r", (Probe("sha256:1", outputs, change),))


LOADED, OTHERWISE = probe(-1.0, -2.0), probe(-2.0, -1.0)
ALL_LOADED = {"engine/0": LOADED, "engine/1": LOADED}
ONE_LOADS = {"engine/0": LOADED, "engine/1": None}
PASSED = Figures(candidate=Tally(10))
FAILED = Figures(candidate=Tally(10, errors=10))

WAITING = Facts(
    settled=True,
    overdue=False,
    engines=ONE_LOADS,
    gateways_behind=frozenset({"gateway/0"}),
    still_held=frozenset({"intents@1"}),
)
"""Nothing has happened: everybody is waited for."""
READY = replace(WAITING, engines=ALL_LOADED)


@dataclass(frozen=True)
class Event:
    """What has happened by the time the rollout is looked at."""

    facts: Facts = WAITING
    figures: Figures = field(default_factory=Figures)
    decision: Decision | None = None
    auto_promote: bool = True


EVENTS = {
    "nothing": Event(),
    "all engines have loaded it": Event(READY),
    "all engines have loaded it, but the controller is new": Event(replace(READY, settled=False)),
    "one engine cannot load it": Event(
        replace(WAITING, engines={"engine/0": PrepareResult("r", error="no"), "engine/1": None})
    ),
    "its adapter has no effect": Event(
        replace(WAITING, engines={"engine/0": probe(-1.0, -2.0, change=0)})
    ),
    "engines answer the probe differently": Event(
        replace(WAITING, engines={"engine/0": LOADED, "engine/1": OTHERWISE})
    ),
    "preparing takes too long": Event(replace(WAITING, overdue=True)),
    "preparing takes too long, but the controller is new": Event(
        replace(WAITING, overdue=True, settled=False)
    ),
    "there is no engine": Event(replace(WAITING, engines={})),
    "there is no engine for too long": Event(replace(WAITING, engines={}, overdue=True)),
    "somebody aborts": Event(READY, decision="abort"),
    "somebody aborts while the gates pass": Event(READY, PASSED, decision="abort"),
    "somebody promotes": Event(READY, decision="promote"),
    "somebody promotes while the gates fail": Event(READY, FAILED, decision="promote"),
    "somebody promotes while an engine loads": Event(decision="promote"),
    "the gates pass": Event(READY, PASSED),
    "the gates pass while an engine loads": Event(figures=PASSED),
    "the gates pass, but the controller is new": Event(replace(READY, settled=False), PASSED),
    "the gates pass, and somebody is to promote": Event(READY, PASSED, auto_promote=False),
    "the gates fail": Event(READY, FAILED),
    "the trial takes too long": Event(replace(READY, seconds=TRIAL_SECONDS)),
    "the gates pass at the last moment": Event(replace(READY, seconds=TRIAL_SECONDS), PASSED),
    "all gateways have switched": Event(replace(WAITING, gateways_behind=frozenset())),
    "all gateways have switched, but the controller is new": Event(
        replace(WAITING, gateways_behind=frozenset(), settled=False)
    ),
    "no engine holds the old version": Event(replace(WAITING, still_held=frozenset())),
}

READY_TO_GO_ON = (
    "all engines have loaded it",
    "somebody promotes",
    "somebody promotes while the gates fail",
    "the gates pass",
    "the gates pass, and somebody is to promote",
    "the gates fail",
    "the trial takes too long",
    "the gates pass at the last moment",
)
"""While it prepares, only what the engines say counts, and whether somebody aborts."""

FAULTS = {
    "one engine cannot load it": ("aborted", 400),
    "its adapter has no effect": ("aborted", 400),
    "engines answer the probe differently": ("aborted", 400),
    "somebody aborts": ("aborted", 409),
    "somebody aborts while the gates pass": ("aborted", 409),
}
TRIAL = FAULTS | {
    "somebody promotes": ("committing", None),
    "somebody promotes while the gates fail": ("committing", None),
    "the gates pass": ("committing", None),
    "the gates pass at the last moment": ("committing", None),
    "the gates fail": ("aborted", 400),
    "the trial takes too long": ("aborted", 409),
}
PREPARING = FAULTS | {
    "preparing takes too long": ("aborted", 503),
    "there is no engine for too long": ("aborted", 503),
}

TABLE: dict[tuple[StrategyKind, str], dict[str, tuple[str, int | None]]] = {
    ("immediate", "preparing"): PREPARING | dict.fromkeys(READY_TO_GO_ON, ("committing", None)),
    ("shadow", "preparing"): PREPARING | dict.fromkeys(READY_TO_GO_ON, ("shadowing", None)),
    ("canary", "preparing"): PREPARING | dict.fromkeys(READY_TO_GO_ON, ("canarying", None)),
    ("shadow", "shadowing"): TRIAL,
    ("canary", "canarying"): TRIAL,
    **{
        (kind, state): after
        for kind in ("immediate", "shadow", "canary")
        for state, after in {
            "committing": {"all gateways have switched": ("draining", None)},
            "draining": {"no engine holds the old version": ("done", None)},
            "done": {},
            "aborted": {},
        }.items()
    },
}
"""Strategy and state -> event -> the next state, and the HTTP status of an abort. Events that are not there change
nothing."""


def rollout(kind: StrategyKind, state: str, event: Event) -> Rollout:
    options = {"gates": GATES, "auto_promote": event.auto_promote} if kind != "immediate" else {}
    return Rollout(
        id="r",
        ensemble="intents",
        from_version=1,
        to_version=2,
        action="swap",
        actor="ada",
        created="",
        updated="",
        strategy=Strategy.model_validate({"kind": kind, **options}),
        state=State(state),
        decision=event.decision,
        decided_by="bob" if event.decision else None,
        figures={"gateway": event.figures},
    )


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(("kind", "state"), TABLE)
def test_what_happens_next_is_what_the_table_says(
    kind: StrategyKind, state: str, event: str
) -> None:
    step = next_step(rollout(kind, state, EVENTS[event]), EVENTS[event].facts)

    found = step and (step.state.value, step.status if step.state is State.ABORTED else None)
    assert found == TABLE[kind, state].get(event)
    if step is not None:
        assert (step.reason is not None) == (step.state is State.ABORTED)


def test_the_table_names_only_events_and_steps_that_there_are() -> None:
    assert {name for after in TABLE.values() for name in after} <= EVENTS.keys()
    for (_, state), after in TABLE.items():
        assert {step for step, _ in after.values()} <= set(ALLOWED[state].split())
    taken = {(state, step) for (_, state), after in TABLE.items() for step, _ in after.values()}
    assert taken == {(state, step) for state, steps in ALLOWED.items() for step in steps.split()}


@pytest.mark.parametrize("step", ALLOWED)
@pytest.mark.parametrize("state", ALLOWED)
def test_a_rollout_goes_where_it_may_and_nowhere_else(state: str, step: str) -> None:
    changing = rollout("canary", state, Event())
    if step in ALLOWED[state].split():
        changing.advance(NextStep(State(step), "why", 503), "now")
        assert (changing.state, changing.reason, changing.status) == (State(step), "why", 503)
    else:
        with pytest.raises(ValueError, match=f"cannot go from {state} to {step}"):
            changing.advance(NextStep(State(step)), "now")
        assert changing.state == State(state)


def test_there_are_no_other_states() -> None:
    assert {state.value for state in State} == ALLOWED.keys()
