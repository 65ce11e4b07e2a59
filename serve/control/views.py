"""Builds what the API shows (`serve/protocol/views.py`) from the controller's records."""

from dataclasses import asdict
from itertools import zip_longest

from serve.control.admission.difference import NotServed
from serve.control.admission.fusion_fit import WEIGHTED, fusion_fit
from serve.control.origins import Origin
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import Rollout
from serve.manifest import Member
from serve.protocol.figures import Tally, total
from serve.protocol.messages import Role
from serve.protocol.views import (
    AdapterView,
    EnsembleView,
    MemberView,
    RolloutView,
    TallyView,
    TrialView,
    VersionView,
)


def rollout_view(rollout: Rollout) -> RolloutView:
    return RolloutView(
        id=rollout.id,
        ensemble=rollout.ensemble,
        state=rollout.state,
        from_version=rollout.from_version,
        to_version=rollout.to_version,
        strategy=rollout.strategy.kind,
        trial=None if rollout.strategy.kind == "immediate" else _trial_view(rollout),
        action=rollout.action,
        actor=rollout.actor,
        uris=rollout.uris,
        replicas=rollout.replicas,
        reason=rollout.reason,
        created=rollout.created,
        updated=rollout.updated,
    )


def version_view(record: VersionRecord, role: Role | None, loaded_on: list[str]) -> VersionView:
    """`loaded_on`: the engines that hold the version, as `engine/ordinal`."""
    return VersionView(
        version=record.ensemble.version,
        role=role,
        loaded_on=loaded_on,
        source=record.source,
        created=record.created,
        digests=list(record.ensemble.digests),
        stale_fusion=record.allow_stale_fusion,
        fusion_fit=fusion_fit(record),
    )


def ensemble_view(
    record: EnsembleRecord,
    versions: list[VersionView],
    rollout: RolloutView | None,
    differences: list[str],
    not_served: NotServed | None,
    *,
    pinned: bool,
    pool: str,
) -> EnsembleView:
    active = record.active_version
    ensemble = active.ensemble
    return EnsembleView(
        name=record.name,
        active_version=record.active,
        task=ensemble.task,
        fusion=ensemble.fusion.method,
        labels=ensemble.labels,
        members=[_member_view(member, active) for member in ensemble.members],
        digests=list(ensemble.digests),
        stale_fusion=active.allow_stale_fusion,
        fusion_fit=fusion_fit(active),
        pinned=pinned,
        pool=pool,
        versions=versions,
        version_count=len(record.versions),
        previous=list(record.previous),
        bundle_version=record.from_bundle,
        rollout=rollout,
        differences=[*differences, *([not_served.said] if not_served else [])],
        bring_in=not_served.command(record.name) if not_served else None,
    )


def _member_view(member: Member, version: VersionRecord) -> MemberView:
    origins = version.origins.get(member.name, ())
    return MemberView(
        name=member.name,
        # The fitted weights of another method say nothing of how this one answers.
        weight=member.weight if version.ensemble.fusion.method in WEIGHTED else None,
        adapters=[
            AdapterView(**ref.model_dump(), **asdict(origin or Origin(None)))
            for ref, origin in zip_longest(member.adapters, origins[: len(member.adapters)])
        ],
    )


def _trial_view(rollout: Rollout) -> TrialView:
    strategy = rollout.strategy
    figures = total(rollout.figures.values())
    return TrialView(
        share=strategy.share,
        auto_promote=strategy.auto_promote,
        gates=strategy.gates,
        max_seconds=strategy.max_seconds,
        decision=rollout.decision,
        candidate=_tally_view(figures.candidate),
        stable=_tally_view(figures.stable),
        compared=figures.compared,
        agreement=figures.agreement,
        dropped=figures.dropped,
    )


def _tally_view(tally: Tally) -> TallyView:
    mean = tally.mean_seconds
    return TallyView(
        requests=tally.requests,
        errors=tally.errors,
        mean_ms=None if mean is None else round(mean * 1000, 3),
    )
