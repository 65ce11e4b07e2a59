"""The rollout as a state machine, without time, network or disk: given what is known, what comes next.

`preparing -> committing -> draining -> done`, and from `preparing` also `aborted`. Shadow and canary will be states
between `preparing` and `committing`. Once committed there is no way back but another rollout.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from serve.engine.interface import Probe
from serve.rollout.messages import PrepareResult

Action: TypeAlias = Literal["swap", "rollback"]
Status: TypeAlias = Literal[400, 409, 503]

PROBE_RTOL = 0.01
PROBE_ATOL = 0.01
"""How far replicas' probe outputs may lie apart, as numpy.isclose has it: bfloat16 rounds to 0.4 %, so healthy
replicas of one kind stay within this, and another adapter's answers do not."""


class State(StrEnum):
    PREPARING = "preparing"
    COMMITTING = "committing"
    DRAINING = "draining"
    DONE = "done"
    ABORTED = "aborted"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PREPARING: frozenset({State.COMMITTING, State.ABORTED}),
    State.COMMITTING: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.DONE}),
    State.DONE: frozenset(),
    State.ABORTED: frozenset(),
}

UNCOMMITTED = frozenset({State.PREPARING})
"""Nothing has changed yet for any request."""
BUSY = frozenset({State.PREPARING, State.COMMITTING})
"""No other rollout of the ensemble may start. One that drains holds nobody up."""
ENDED = frozenset({State.DONE, State.ABORTED})


@dataclass
class Rollout:
    """The change of one ensemble from one active version to another."""

    id: str
    ensemble: str
    from_version: int
    to_version: int
    strategy: str
    action: Action
    actor: str
    created: str
    """ISO 8601, UTC."""
    updated: str
    state: State = State.PREPARING
    reason: str | None = None
    """Why it was aborted."""
    status: Status = 400
    """The HTTP status of an abort: whether the candidate is to blame, or the server."""
    replicas: dict[str, str] = field(default_factory=dict)
    """Each participant, as `kind/slot` -> how far it was at the last step."""

    @property
    def candidate(self) -> str:
        """`name@version` of the new version."""
        return f"{self.ensemble}@{self.to_version}"

    def advance(self, step: "Step", now: str) -> None:
        """Raises ValueError for a step that the machine does not have."""
        if step.state not in TRANSITIONS[self.state]:
            raise ValueError(f"A rollout cannot go from {self.state} to {step.state}.")
        self.state, self.reason, self.updated = step.state, step.reason, now
        self.status = step.status


@dataclass(frozen=True)
class Step:
    """Where a rollout goes next, and why if it fails."""

    state: State
    reason: str | None = None
    status: Status = 400


@dataclass(frozen=True)
class Facts:
    """What the controller knows at one moment."""

    settled: bool
    """Whether every participant that may still hold a lease of an earlier controller was heard of,
    or its lease has run out."""
    overdue: bool
    """Whether preparation has taken longer than it may."""
    engines: Mapping[str, PrepareResult | None] = field(default_factory=dict)
    """Each live engine, and how it prepared the candidate for this rollout, once it has."""
    gateways_behind: frozenset[str] = frozenset()
    """Live gateways that have not applied the commit."""
    still_held: frozenset[str] = frozenset()
    """`name@version` of this ensemble that engines hold although nobody wants them any more."""


def next_step(state: State, facts: Facts) -> Step | None:
    """What a rollout does next; None while it has to wait."""
    if state is State.PREPARING:
        return _after_preparing(facts)
    if state is State.COMMITTING and facts.settled and not facts.gateways_behind:
        return Step(State.DRAINING)
    if state is State.DRAINING and not facts.still_held:
        return Step(State.DONE)
    return None


def _after_preparing(facts: Facts) -> Step | None:
    results = {name: result for name, result in facts.engines.items() if result is not None}
    for name, result in results.items():
        if result.error is not None:
            return Step(State.ABORTED, f"{name} could not prepare the version: {result.error}")
    if len(results) == len(facts.engines) > 0 and facts.settled:
        doubt = doubtful_probes({name: result.probes or () for name, result in results.items()})
        return Step(State.ABORTED, doubt) if doubt else Step(State.COMMITTING)
    if facts.settled and facts.overdue:
        waiting = sorted(set(facts.engines) - set(results))
        who = f"{', '.join(waiting)} did not prepare the version in time" if waiting else ""
        return Step(State.ABORTED, who or "no engine is alive to prepare the version", 503)
    return None


def doubtful_probes(probes: Mapping[str, Iterable[Probe]]) -> str | None:
    """Why a version should not go live for what its adapters answered to the probe, by engine."""
    first: dict[str, tuple[str, Probe]] = {}
    for engine, answers in probes.items():
        for probe in answers:
            if not probe.change > 0:
                return (
                    f"the adapter {probe.digest} does not change what the base answers "
                    f"(difference {probe.change} on {engine}): it has no effect"
                )
            other, reference = first.setdefault(probe.digest, (engine, probe))
            if not _agree(reference.outputs, probe.outputs):
                return (
                    f"{other} and {engine} answer the probe differently with the adapter "
                    f"{probe.digest} (tolerance {PROBE_ATOL} + {PROBE_RTOL:.0%})"
                )
    return None


def _agree(reference: tuple[float, ...], outputs: tuple[float, ...]) -> bool:
    if len(reference) != len(outputs):
        return False
    return all(
        math.isfinite(b) and abs(a - b) <= PROBE_ATOL + PROBE_RTOL * abs(a)
        for a, b in zip(reference, outputs, strict=True)
    )
