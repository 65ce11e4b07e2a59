"""What of a fusion was fitted on its members' adapters, and whether they still are the ones."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from serve.manifest import Ensemble
from serve.rollout.records import VersionRecord

WEIGHTED = ("weighted_average", "vote", "product")
"""The methods that read the members' weights."""


class FusionFit(BaseModel):
    """How the fitted parts of a version's fusion belong to its adapters, as the API shows it."""

    state: Literal["none", "fitted", "stale"]
    """`none`: nothing was fitted; `stale`: fitted on other adapters, which was allowed."""
    parts: list[Literal["weights", "temperature", "stacker"]]
    stale_members: list[str]
    """Members that have other adapters than those it was fitted on."""

    @classmethod
    def of(cls, record: VersionRecord) -> "FusionFit":
        parts = fitted_parts(record.ensemble)
        changed = changed_members(record.ensemble, record.fitted_on) if parts else []
        if record.allow_stale_fusion or changed:
            return cls(state="stale", parts=parts, stale_members=changed)
        return cls(state="fitted" if parts else "none", parts=parts, stale_members=[])


def fitted_parts(
    ensemble: Ensemble,
) -> list[Literal["weights", "temperature", "stacker"]]:
    """What would be another with other adapters. Equal weights fit any."""
    parts: list[Literal["weights", "temperature", "stacker"]] = []
    if ensemble.fusion.method in WEIGHTED and len(set(ensemble.weights())) > 1:
        parts.append("weights")
    if ensemble.fusion.temperature != 1:
        parts.append("temperature")
    if ensemble.fusion.method == "stack":
        parts.append("stacker")
    return parts


def own_digests(ensemble: Ensemble) -> dict[str, list[str]]:
    """Member -> the digests of its adapters."""
    return {member.name: [ref.digest for ref in member.adapters] for member in ensemble.members}


def changed_members(ensemble: Ensemble, fitted_on: Mapping[str, list[str]] | None) -> list[str]:
    """Members that have other adapters than `fitted_on` says; none if it is the ensemble itself (None)."""
    if fitted_on is None:
        return []
    return [name for name, own in own_digests(ensemble).items() if fitted_on.get(name) != own]
