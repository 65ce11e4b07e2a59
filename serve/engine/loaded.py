"""A version that is loaded in the engine, and how it answers when members are missing."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from serve.adapter import Head
from serve.engine.interface import VERSION_NOT_LOADED, PrepareError, Version
from serve.errors import Refusal
from serve.fusion.fuse import Fusion
from serve.fusion.ranking.ranker import Ranker
from serve.manifest import Ensemble, Member

T = TypeVar("T")


@dataclass
class LoadedVersion:
    """A version that is ready to answer."""

    version: Version
    ensemble: Ensemble
    """The version's ensemble, without the members that could not be loaded."""
    absent: tuple[str, ...]
    """The names of the members that could not be loaded."""
    fusion: Fusion | None
    """None for generation."""
    heads: dict[str, Head]
    """Member -> its head; empty unless heads answer."""
    loras: frozenset[str]
    """Digests of the LoRAs that must be in slots while a request runs."""
    ranker: Ranker | None = None
    """Generation: what ranks the members' answers; None if none was fitted."""
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()


def degraded(ensemble: Ensemble, absent: Mapping[str, PrepareError]) -> Ensemble:
    """Returns the ensemble without the members that failed; its weights then add up over the rest.

    `absent`: the name of each member that could not be loaded, with the reason. Raises PrepareError if no member with a
    weight is left, or if the fusion needs every member."""
    if not absent:
        return ensemble
    name, reason = next(iter(absent.items()))
    if ensemble.fusion.method in ("stack", "gate"):
        what = "stacker" if ensemble.fusion.method == "stack" else "gate"
        raise PrepareError(f"A {what} needs all members, and {name!r} failed: {reason}")
    if ensemble.fusion.abstain is not None:
        raise PrepareError(
            f"The risk of abstaining is kept by all members together, and {name!r} failed: {reason}"
        )
    members = [member for member in ensemble.members if member.name not in absent]
    if not any(member.weight != 0 for member in members):
        raise PrepareError(f"No member with a weight is left; {name!r} failed: {reason}")
    # Early exit was fitted with all members, so the others are all asked.
    # Nor can a request choose a stacker or a gate, which need every member.
    whole = dict.fromkeys(("early_exit", "model", "parameters", "top_k"))
    fusion = ensemble.fusion.model_copy(update=whole)
    return ensemble.model_copy(update={"members": members, "fusion": fusion})


def refuse_group(ensemble: Ensemble, loras: frozenset[str], slots: int, sequences: int) -> None:
    """Raises PrepareError if the ensemble has more LoRAs or members than the engine can run at once."""
    if len(loras) > slots:
        raise PrepareError(
            f"The ensemble has {len(loras)} distinct LoRAs and the engine runs {slots} at once; start with a "
            f"larger max_loras (--engine '{{\"max_loras\": {len(loras)}}}')."
        )
    if ensemble.task == "generation" and len(ensemble.members) > sequences:
        raise PrepareError(
            f"The ensemble has {len(ensemble.members)} members and the engine runs {sequences} sequences at once; "
            f"start with a larger max_num_seqs (--engine '{{\"max_num_seqs\": N}}')."
        )


def fitted_parts(version: Version, ensemble: Ensemble) -> tuple[Fusion | None, Ranker | None]:
    """Returns what fuses labels or values, or what ranks answers. `ensemble` is the version's, perhaps without members.
    Raises FusionError."""
    file = Path(version.parameters) if version.parameters else None
    stale = version.allow_stale_fusion
    if ensemble.task == "generation":
        return None, Ranker.from_manifest(ensemble, file, allow_stale=stale)
    return Fusion.from_manifest(ensemble, file, allow_stale=stale), None


def not_loaded(key: str) -> Refusal:
    """Returns the refusal of a call for a version that this engine does not hold."""
    return Refusal(503, f"{key} is not loaded on this engine.", code=VERSION_NOT_LOADED)


def members_of(ensemble: Ensemble, name: str | None) -> tuple[Member, ...]:
    """Returns the member of that name, or all members if `name` is None."""
    return tuple(member for member in ensemble.members if name in (None, member.name))


def without_absent(
    loaded: LoadedVersion, by_member: Mapping[str, T] | None
) -> Mapping[str, T] | None:
    """Returns a request's values by member, without those of members that could not be loaded."""
    if by_member is None:
        return None
    return {name: value for name, value in by_member.items() if name not in loaded.absent}


def absent_refusal(loaded: LoadedVersion, member: str | None) -> Refusal | None:
    """Returns the refusal of a call for a member that could not be loaded; None for any other member."""
    if member not in loaded.absent:
        return None
    return Refusal(
        503, f"The member {member!r} could not be loaded; the ensemble answers without it."
    )
