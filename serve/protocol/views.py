"""What the API shows of ensembles and rollouts. `serve/control/views.py` builds these from the controller's records."""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from serve.manifest import AdapterRef
from serve.protocol.messages import Role
from serve.protocol.requests import Decision
from serve.protocol.strategy import Gates, StrategyKind

FittedPart: TypeAlias = Literal[
    "weights", "temperature", "thresholds", "stacker", "gate", "early_exit", "abstain"
]
"""A part of a fusion that is fitted on its members' adapters."""


class FusionFit(BaseModel):
    """How the fitted parts of a version's fusion belong to its adapters, as the API shows it."""

    state: Literal["none", "manual", "fitted", "refitted", "stale"]
    """`none`: nothing is fitted. `manual`: set by hand, and kept by swaps. `fitted`: on these adapters. `refitted`: on
    these adapters by the swap, from stored validation scores. `stale`: on other adapters, which the swap allowed."""
    parts: list[FittedPart]
    """The fitted parts that the ensemble's own method uses."""
    stale_members: list[str]
    """The members whose adapters differ from those that the fusion was fitted on."""


class TallyView(BaseModel):
    """What one version answered during a trial."""

    requests: int
    errors: int
    """How many of them ended in a server error."""
    mean_ms: float | None
    """Milliseconds until the answer, or the first part of a stream."""


class TrialView(BaseModel):
    """How a candidate is tried out, and what was counted so far."""

    share: float
    auto_promote: bool
    gates: Gates
    max_seconds: float | None
    """Seconds after which the trial is aborted, the default included. None: never."""
    decision: Decision | None
    """What an administrator has decided, if anything."""
    candidate: TallyView
    stable: TallyView
    """The active version's."""
    compared: int
    """Requests that both versions answered."""
    agreement: float | None
    """Share of them with the same answer."""
    dropped: int
    """Requests that were not sent to the other version because the queue was full."""


class RolloutView(BaseModel):
    """A rollout, as the API shows it."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    ensemble: str
    state: str
    from_version: int = Field(alias="from")
    to_version: int = Field(alias="to")
    strategy: StrategyKind
    trial: TrialView | None = None
    """For shadow and canary."""
    action: str
    """swap or rollback."""
    actor: str
    uris: dict[str, list[str]] = {}
    """Member -> the URIs of its adapters in the new version, for the members whose adapters change."""
    replicas: dict[str, str] = {}
    """Live participant, as `kind/ordinal` -> how far it is."""
    reason: str | None = None
    created: str
    updated: str


class AdapterView(AdapterRef):
    """An adapter of a version, and where it came from."""

    uri: str | None
    """The folder that it was copied from, without secrets. None if an earlier release did not record it."""
    swapped_by: str | None
    """Who swapped it in, as in the audit. None if it came with a bundle."""
    swapped_at: str | None
    """When it was swapped in: ISO 8601, UTC. None if it came with a bundle."""


class MemberView(BaseModel):
    """A member of a version, with its adapters."""

    name: str
    weight: float | None
    """None if the fusion's method uses no weights."""
    adapters: list[AdapterView]


class VersionView(BaseModel):
    """One version of an ensemble."""

    version: int
    role: Role | None
    """None if engines neither hold it nor load it on demand."""
    loaded_on: list[str]
    """The engines that hold it now, as `engine/ordinal`."""
    source: str
    """`bundle:` and the bundle's folder, or who swapped it in. `base:` and a bundle's folder: the first version of a
    name that was made at run time, over the base of that bundle."""
    created: str
    digests: list[str]
    stale_fusion: bool
    """Whether a swap allowed a fusion that was fitted on other adapters."""
    fusion_fit: FusionFit


class EnsembleView(BaseModel):
    """An ensemble: what is active, what there is, and the rollout in progress."""

    name: str
    active_version: int
    task: str
    fusion: str
    labels: list[str] | None
    members: list[MemberView]
    """Of the active version."""
    digests: list[str]
    stale_fusion: bool
    """Of the active version."""
    fusion_fit: FusionFit
    """Of the active version."""
    pinned: bool
    """Whether it is always loaded, rather than on demand."""
    pool: str
    """The pool of engines that serve it, named after the first bundle of its base."""
    versions: list[VersionView]
    """The versions in use, and the newest others: 20 in a list of ensembles, 500 for one ensemble."""
    version_count: int
    """How many versions there are in all."""
    previous: list[int]
    """The versions that rollbacks return to. The next one is the last."""
    bundle_version: int | None = None
    """The version of a bundle that was active last, or the highest one; None if none is left. For a name that was made
    at run time: its first version, which has no adapter."""
    rollout: RolloutView | None
    differences: list[str]
    """How the bundle of this start differs from what is served, one sentence each."""
    bring_in: str | None = None
    """The command that makes the bundle's version active; None if it is, or if there is no other."""
