"""What is answered to an administrator."""

from pydantic import BaseModel, ConfigDict, Field

from serve.control.admission.fusion_fit import FusionFit
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import Decision, Rollout
from serve.manifest import Member
from serve.protocol.figures import Figures, Tally, total
from serve.protocol.messages import Role
from serve.protocol.strategy import Gates, StrategyKind


class TallyView(BaseModel):
    """What one version answered during a trial."""

    requests: int
    errors: int
    """Of these, those that ended in a server error."""
    mean_ms: float | None
    """Milliseconds until the answer, or the first part of a stream."""

    @classmethod
    def of(cls, tally: Tally) -> "TallyView":
        mean = tally.mean_seconds
        return cls(
            requests=tally.requests,
            errors=tally.errors,
            mean_ms=None if mean is None else round(mean * 1000, 3),
        )


class TrialView(BaseModel):
    """How a candidate is tried out, and what was counted so far."""

    share: float
    auto_promote: bool
    gates: Gates
    max_seconds: float | None
    """After which it is given up, the default included; null: never."""
    decision: Decision | None
    """What somebody has decided about it."""
    candidate: TallyView
    stable: TallyView
    """The active version's."""
    compared: int
    """Requests that both versions answered."""
    agreement: float | None
    """Share of these with the same answer."""
    dropped: int
    """Requests that were not asked again because the queue was full."""

    @classmethod
    def of(cls, rollout: Rollout, figures: Figures) -> "TrialView":
        strategy = rollout.strategy
        return cls(
            share=strategy.share,
            auto_promote=strategy.auto_promote,
            gates=strategy.gates,
            max_seconds=strategy.max_seconds,
            decision=rollout.decision,
            candidate=TallyView.of(figures.candidate),
            stable=TallyView.of(figures.stable),
            compared=figures.compared,
            agreement=figures.agreement,
            dropped=figures.dropped,
        )


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
    replicas: dict[str, str] = {}
    """Each live participant, as `kind/ordinal` -> how far it is."""
    reason: str | None = None
    created: str
    updated: str

    @classmethod
    def of(cls, rollout: Rollout) -> "RolloutView":
        kind = rollout.strategy.kind
        figures = total(rollout.figures.values())
        return cls(
            id=rollout.id,
            ensemble=rollout.ensemble,
            state=rollout.state,
            from_version=rollout.from_version,
            to_version=rollout.to_version,
            strategy=kind,
            trial=None if kind == "immediate" else TrialView.of(rollout, figures),
            action=rollout.action,
            actor=rollout.actor,
            replicas=rollout.replicas,
            reason=rollout.reason,
            created=rollout.created,
            updated=rollout.updated,
        )


class VersionView(BaseModel):
    """One version of an ensemble."""

    version: int
    role: Role | None
    """None if engines do not hold it, and do not load it on demand either."""
    loaded_on: list[str]
    """The engines that hold it now, as `engine/ordinal`."""
    source: str
    created: str
    digests: list[str]
    stale_fusion: bool
    """Whether it was let through with a fusion fitted on other adapters."""
    fusion_fit: FusionFit

    @classmethod
    def of(cls, record: VersionRecord, role: Role | None, loaded_on: list[str]) -> "VersionView":
        return cls(
            version=record.ensemble.version,
            role=role,
            loaded_on=loaded_on,
            source=record.source,
            created=record.created,
            digests=list(record.ensemble.digests),
            stale_fusion=record.allow_stale_fusion,
            fusion_fit=FusionFit.of(record),
        )


class EnsembleView(BaseModel):
    """An ensemble: what is active, what there is, and the rollout in progress."""

    name: str
    active_version: int
    task: str
    fusion: str
    labels: list[str] | None
    members: list[Member]
    """Of the active version."""
    digests: list[str]
    stale_fusion: bool
    """Of the active version."""
    fusion_fit: FusionFit
    """Of the active version."""
    pinned: bool
    """Whether it is always loaded, and not by requests for it."""
    versions: list[VersionView]
    """Those in use, and the newest of the others: 20 in a list of ensembles, 500 of one."""
    version_count: int
    """How many there are in all."""
    previous: list[int]
    """What a rollback goes back through, the nearest last."""
    rollout: RolloutView | None
    differences: list[str]
    """Where the bundle on disk says something else, in sentences."""

    @classmethod
    def of(
        cls,
        record: EnsembleRecord,
        versions: list[VersionView],
        rollout: RolloutView | None,
        differences: list[str],
        *,
        pinned: bool,
    ) -> "EnsembleView":
        active = record.active_version
        ensemble = active.ensemble
        return cls(
            name=record.name,
            active_version=record.active,
            task=ensemble.task,
            fusion=ensemble.fusion.method,
            labels=ensemble.labels,
            members=ensemble.members,
            digests=list(ensemble.digests),
            stale_fusion=active.allow_stale_fusion,
            fusion_fit=FusionFit.of(active),
            pinned=pinned,
            versions=versions,
            version_count=len(record.versions),
            previous=list(record.previous),
            rollout=rollout,
            differences=differences,
        )
