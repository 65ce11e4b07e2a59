"""The messages between the controller and its participants: engines and gateways.

Every message crosses a process boundary, so all of them are plain frozen dataclasses.
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
    """Return whether gateways may send requests to a version with this role and, as a candidate, this trial."""
    return role in ("active", "warm") or trial is not None


@dataclass(frozen=True)
class PrepareResult:
    """The result of loading a version on one engine."""

    attempt: str | None
    """Id of the rollout that asked for it, so that the result is never taken for that of another rollout; None if no
    rollout asked."""
    probes: tuple[Probe, ...] | None = None
    error: str | None = None
    """Why the version cannot go live on this engine; None if it can."""


@dataclass(frozen=True)
class StatusReport:
    """What a participant tells whenever it renews its lease."""

    participant: str
    """Unique id of the process."""
    kind: ParticipantKind
    sequence: int
    """Number of this report among the participant's reports. The controller ignores a report that is older than one it
    has."""
    seen_revision: int
    """The last revision that this participant applied; 0 before the first."""
    ready: bool
    """Whether the participant can serve requests."""
    prepared: Mapping[str, PrepareResult] = field(default_factory=dict)
    """`name@version` -> the result of loading it. Engines only."""
    holding: tuple[str, ...] = ()
    """`name@version` of every loaded version, including those that are being released. Engines only."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """Id of a rollout -> what this process has counted about its trial. Gateways only."""
    urgent: bool = False
    """Whether the controller should answer at once, whatever revision was seen."""
    leaving: bool = False
    """Whether this is the last report, so that the lease ends at once."""
    pool: str = ""
    """The pool of an engine; empty for gateways, which ask all pools."""


@dataclass(frozen=True)
class AssignedVersion:
    """A version that engines hold, and its role.

    `active` answers requests for the ensemble. `warm` was active before: it can be asked by its number, and a rollback
    to it is quick. `candidate` belongs to a rollout. `draining` is held until no gateway can send it requests."""

    version: Version
    role: Role
    attempt: str | None = None
    """Id of the rollout that wants it prepared and probed, even if it is loaded; None if no rollout does."""
    trial: Strategy | None = None
    """How that rollout tries it out on requests. Set once all engines have prepared it."""
    on_demand: bool = False
    """Whether it is loaded by the first request for it."""
    compared: bool = False
    """Whether a candidate on trial is compared with it."""
    pool: str = ""
    """The pool of engines that hold it."""

    @property
    def lazy(self) -> bool:
        """Whether it is loaded only while requests want it, and may be evicted: on demand, and no rollout needs it."""
        return self.on_demand and self.attempt is None and not self.compared

    @property
    def waited_for(self) -> bool:
        """Whether a request for it waits until it is loaded. False once it drains."""
        return self.on_demand and self.routable

    @property
    def routable(self) -> bool:
        """Whether gateways may send it requests."""
        return is_routable(self.role, self.trial)


@dataclass(frozen=True)
class Desired:
    """The desired state at one revision, which every participant brings about."""

    revision: int
    """Grows with every change, also across restarts of the controller."""
    lease_seconds: float
    """How long the lease lasts."""
    versions: tuple[AssignedVersion, ...]
    """For an engine: those of its pool."""
    ready_engines: Mapping[str, int] | None
    """Pool -> how many of its engines have loaded all of its active versions; None while a new controller cannot
    know."""
    stopping: bool = False
    """Whether the server stops: gateways finish what they have begun, and leave."""
