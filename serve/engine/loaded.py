"""A version that is loaded in the engine, and what a request says of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from serve.adapter import Head
from serve.engine.interface import VERSION_NOT_LOADED, Version
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, Member
from serve.refusal import Refusal

T = TypeVar("T")


@dataclass
class Loaded:
    """A version that is ready to answer."""

    version: Version
    ensemble: Ensemble
    """The version's, less the members that could not be loaded."""
    absent: tuple[str, ...]
    """Those members' names."""
    fusion: Fusion | None
    heads: dict[str, Head]
    loras: frozenset[str]
    """Digests of those that have to be in slots while a request runs."""
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()


def not_loaded(key: str) -> Refusal:
    return Refusal(503, f"{key} is not loaded on this engine.", code=VERSION_NOT_LOADED)


def members_of(ensemble: Ensemble, name: str | None) -> tuple[Member, ...]:
    return tuple(member for member in ensemble.members if name in (None, member.name))


def present(loaded: Loaded, by_member: Mapping[str, T] | None) -> Mapping[str, T] | None:
    """What a request says of members, less those that could not be loaded."""
    if by_member is None:
        return None
    return {name: value for name, value in by_member.items() if name not in loaded.absent}


def absent_refusal(loaded: Loaded, member: str | None) -> Refusal | None:
    if member not in loaded.absent:
        return None
    return Refusal(
        503, f"The member {member!r} could not be loaded; the ensemble goes on without it."
    )
