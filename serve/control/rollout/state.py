"""The rollout as a state machine, without time, network or disk: given the facts, what comes next.

`preparing -> committing -> draining -> done`, with `shadowing` or `canarying` before `committing` if the strategy asks
for it. All states before `committing` can also lead to `aborted`. A committed rollout can only be undone by another
one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from serve.control.rollout.agreement import doubtful_probes
from serve.control.rollout.gates import judge
from serve.protocol.figures import Figures, total
from serve.protocol.messages import PrepareResult
from serve.protocol.requests import Decision
from serve.protocol.strategy import IMMEDIATE, Strategy, StrategyKind

Action: TypeAlias = Literal["swap", "rollback"]
Status: TypeAlias = Literal[400, 409, 503]


class State(StrEnum):
    PREPARING = "preparing"
    SHADOWING = "shadowing"
    CANARYING = "canarying"
    COMMITTING = "committing"
    DRAINING = "draining"
    DONE = "done"
    ABORTED = "aborted"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PREPARING: frozenset({State.SHADOWING, State.CANARYING, State.COMMITTING, State.ABORTED}),
    State.SHADOWING: frozenset({State.COMMITTING, State.ABORTED}),
    State.CANARYING: frozenset({State.COMMITTING, State.ABORTED}),
    State.COMMITTING: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.DONE}),
    State.DONE: frozenset(),
    State.ABORTED: frozenset(),
}

TRIALS = frozenset({State.SHADOWING, State.CANARYING})
"""The candidate is tried out on requests."""
UNCOMMITTED = TRIALS | {State.PREPARING}
"""The active version is still the old one."""
BUSY = UNCOMMITTED | {State.COMMITTING}
"""No other rollout of the ensemble may start. Beside a draining one, another may."""
ENDED = frozenset({State.DONE, State.ABORTED})

AFTER_PREPARING: Mapping[StrategyKind, State] = {
    "immediate": State.COMMITTING,
    "shadow": State.SHADOWING,
    "canary": State.CANARYING,
}


@dataclass
class Rollout:
    """The change of one ensemble from one active version to another."""

    id: str
    ensemble: str
    from_version: int
    to_version: int
    action: Action
    actor: str
    created: str
    """ISO 8601, UTC."""
    updated: str
    strategy: Strategy = IMMEDIATE
    state: State = State.PREPARING
    reason: str | None = None
    """Why it was aborted."""
    status: Status = 400
    """The HTTP status of an abort: 400 if the candidate is the cause, 503 if the server is, else 409."""
    replicas: dict[str, str] = field(default_factory=dict)
    """Participant, as `kind/ordinal` -> how far it was at the last step."""
    uris: dict[str, list[str]] = field(default_factory=dict)
    """Member -> the URIs of its adapters in the new version, for the members whose adapters it changes."""
    decision: Decision | None = None
    """The decision of an administrator, which overrides the gates."""
    decided_by: str | None = None
    figures: dict[str, Figures] = field(default_factory=dict)
    """Gateway (the id of its process) -> its figures of the trial."""

    @property
    def candidate(self) -> str:
        """`name@version` of the new version."""
        return f"{self.ensemble}@{self.to_version}"

    @property
    def trial(self) -> Strategy | None:
        """The strategy, while the candidate is tried out; else None."""
        return self.strategy if self.state in TRIALS else None

    @property
    def tries(self) -> bool:
        """Whether the candidate is, or will be, tried out before it is active."""
        return self.strategy.kind != "immediate" and self.state in UNCOMMITTED

    def count(self, gateway: str, figures: Figures) -> bool:
        """Take the figures of a gateway. Returns whether they are new."""
        known = self.figures.get(gateway)
        if known is not None and figures.size <= known.size:
            return False
        self.figures[gateway] = figures
        return True

    def advance(self, step: "NextStep", now: str) -> None:
        """Take a step. Raises ValueError for a step that does not exist."""
        if step.state not in TRANSITIONS[self.state]:
            raise ValueError(f"A rollout cannot go from {self.state} to {step.state}.")
        self.state, self.reason, self.updated = step.state, step.reason, now
        self.status = step.status


@dataclass(frozen=True)
class NextStep:
    """The next state of a rollout, and the reason if it is aborted."""

    state: State
    reason: str | None = None
    status: Status = 400


@dataclass(frozen=True)
class Facts:
    """The facts that the controller knows at one moment."""

    settled: bool
    """Whether all leases of an earlier controller have run out or were renewed with this one."""
    overdue: bool
    """Whether the rollout has been in its state for longer than preparing may take."""
    seconds: float = 0.0
    """How long the rollout has been in its state."""
    engines: Mapping[str, PrepareResult | None] = field(default_factory=dict)
    """Live engine -> its result of preparing the candidate for this rollout; None if it has none yet."""
    gateways_behind: frozenset[str] = frozenset()
    """Live gateways that have not applied the commit."""
    still_held: frozenset[str] = frozenset()
    """Versions of this ensemble (`name@version`) that are draining, or that engines hold although they are not
    assigned."""


def next_step(rollout: Rollout, facts: Facts) -> NextStep | None:
    """The next step of a rollout; None while it has to wait."""
    state = rollout.state
    if state in UNCOMMITTED:
        if rollout.decision == "abort":
            return NextStep(State.ABORTED, f"aborted by {rollout.decided_by}", 409)
        failure = _failed_engine(facts)
        if failure is not None:
            return NextStep(State.ABORTED, failure)
        return (
            _after_preparing(rollout, facts)
            if state is State.PREPARING
            else _after_trial(rollout, facts)
        )
    if state is State.COMMITTING and facts.settled and not facts.gateways_behind:
        return NextStep(State.DRAINING)
    if state is State.DRAINING and not facts.still_held:
        return NextStep(State.DONE)
    return None


def _failed_engine(facts: Facts) -> str | None:
    """Why the candidate cannot go live, judging by the results of all engines, also of those that joined late."""
    results = {name: result for name, result in facts.engines.items() if result is not None}
    for name, result in results.items():
        if result.error is not None:
            return f"{name} could not prepare the version: {result.error}"
    if not _prepared(facts):
        return None
    return doubtful_probes({name: result.probes or () for name, result in results.items()})


def _prepared(facts: Facts) -> bool:
    """Whether all engines that can be alive have prepared the candidate."""
    return facts.settled and len(facts.engines) > 0 and None not in facts.engines.values()


def _after_preparing(rollout: Rollout, facts: Facts) -> NextStep | None:
    if _prepared(facts):
        return NextStep(AFTER_PREPARING[rollout.strategy.kind])
    if facts.settled and facts.overdue:
        waiting = sorted(name for name, result in facts.engines.items() if result is None)
        who = f"{', '.join(waiting)} did not prepare the version in time" if waiting else ""
        return NextStep(State.ABORTED, who or "no engine is alive to prepare the version", 503)
    return None


def _after_trial(rollout: Rollout, facts: Facts) -> NextStep | None:
    """The next step of a trial. A decision to promote overrides the gates, but waits for engines that joined late."""
    promoted = rollout.decision == "promote"
    if not promoted:
        verdict = judge(rollout.strategy, total(rollout.figures.values()), facts.seconds)
        if verdict is None:
            return None
        if verdict.outcome != "passed":
            return NextStep(
                State.ABORTED, verdict.reason, 400 if verdict.outcome == "failed" else 409
            )
        promoted = rollout.strategy.auto_promote
    return NextStep(State.COMMITTING) if promoted and _prepared(facts) else None
