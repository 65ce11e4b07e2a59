"""What participants (engines and gateways) and the controller tell each other.

Every message crosses a process boundary, so all are plain frozen dataclasses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serve.engine.interface import Probe, Version
from serve.protocol.figures import Figures
from serve.protocol.strategy import Strategy

ParticipantKind: TypeAlias = Literal["engine", "gateway"]
Role: TypeAlias = Literal["active", "warm", "candidate", "draining"]


def is_routable(role: Role, trial: Strategy | None) -> bool:
    """Whether gateways may send requests to a version that is held as `role`."""
    return role in ("active", "warm") or trial is not None


@dataclass(frozen=True)
class PrepareResult:
    """How loading a version went on one engine."""

    attempt: str | None
    """The rollout that asked for it, so that the result of an earlier one is never taken for
    this one's; None where no rollout asked."""
    probes: tuple[Probe, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class StatusReport:
    """What a participant says of itself whenever it renews its lease."""

    participant: str
    """Unique id of this incarnation of the process."""
    kind: ParticipantKind
    sequence: int
    """Counts this participant's reports: the controller never falls back to an older one."""
    seen_revision: int
    """The last revision that this participant applied; 0 before the first."""
    ready: bool
    prepared: Mapping[str, PrepareResult] = field(default_factory=dict)
    """`name@version` -> how loading it went. Engines only."""
    holding: tuple[str, ...] = ()
    """`name@version` of all that is loaded, also while it is being released. Engines only."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """Rollout -> what was counted of its trial since this process began. Gateways only."""
    urgent: bool = False
    """Answer at once, whatever revision was seen."""
    leaving: bool = False
    """The last report: the lease ends at once."""


@dataclass(frozen=True)
class AssignedVersion:
    """A version that engines must hold, and what for.

    `active` answers by default, `warm` is an earlier one that can be pinned and returned to at
    once, `candidate` is being tried by a rollout, and `draining` is held only until no gateway can
    send it requests any more."""

    version: Version
    role: Role
    attempt: str | None = None
    """The rollout that wants it prepared (again) and probed, if any does."""
    trial: Strategy | None = None
    """How that rollout tries it out on requests, once all engines have prepared it."""
    on_demand: bool = False
    """Whether a request may find it not loaded, and loads it."""
    compared: bool = False
    """Whether a candidate is tried out against it."""

    @property
    def lazy(self) -> bool:
        """Whether it need not be loaded before it is asked for, and may leave for others: no rollout needs it now."""
        return self.on_demand and self.attempt is None and not self.compared

    @property
    def waited_for(self) -> bool:
        """Whether a request for it waits until it is loaded: not once it is on its way out."""
        return self.on_demand and self.routable

    @property
    def routable(self) -> bool:
        """Whether gateways may send it requests."""
        return is_routable(self.role, self.trial)


@dataclass(frozen=True)
class Desired:
    """The state that every participant is to bring about, at one revision."""

    revision: int
    """Grows with every change, also over restarts of the controller."""
    epoch: int
    """Counts commits: the durable part of the state."""
    ordinal: int
    """The number of the participant that this answers, taken over by whoever replaces it."""
    lease_seconds: float
    versions: tuple[AssignedVersion, ...]
    active: Mapping[str, int]
    """Ensemble -> active version."""
    ready_engines: int | None
    """How many engines have loaded all that is active; None while a new controller cannot know."""
