"""Ensembles and their versions, as the database holds them."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from serve.control.origins import Origin, Origins, all_uris
from serve.manifest import Ensemble

FROM_BUNDLE = "bundle:"
"""How the source of a version that came with a bundle begins."""
FROM_BASE = "base:"
"""How the source of the first version of a name begins that was made at run time. The folder of a bundle follows, over
whose base it is served."""
HISTORY = 1000
"""How many earlier versions an ensemble remembers for rollbacks."""


@dataclass(frozen=True)
class VersionRecord:
    """One version and where it came from. Only `left` ever changes."""

    ensemble: Ensemble
    source: str
    """`bundle:<folder>`, `base:<folder>`, or the actor who swapped it in."""
    created: str
    """ISO 8601, UTC."""
    parameters: str | None = None
    """SHA-256 of the file of fitted parameters in the store, if the fusion has one."""
    allow_stale_fusion: bool = False
    fitted_on: Mapping[str, list[str]] | None = None
    """Member -> digests of the adapters that weights, temperature and stacker were fitted on; None: its own
    adapters."""
    origins: Origins = field(default_factory=dict)
    """Where its adapters came from."""
    left: int | None = None
    """The epoch of the commit that last replaced it as the active version; None if there was none."""

    @property
    def empty(self) -> bool:
        """Whether it is what a name began with that was made at run time: it has no adapter, and is never asked."""
        return self.source.startswith(FROM_BASE)

    def origins_by_adapter(self) -> dict[tuple[str, str], Origin]:
        """(Member, digest) -> where that adapter came from, as far as it is known."""
        return {
            (member.name, ref.digest): origin
            for member in self.ensemble.members
            for ref, origin in zip(member.adapters, self.origins.get(member.name, ()), strict=False)
        }

    def uris_changed_from(self, before: "VersionRecord") -> dict[str, list[str]]:
        """Member -> the URIs of its adapters, for the members whose adapters differ or were swapped in again."""
        old = {each.name: each.adapters for each in before.ensemble.members}
        uris = all_uris(self.origins)
        return {
            member.name: uris[member.name]
            for member in self.ensemble.members
            if member.name in uris
            and (member.adapters, self.origins[member.name])
            != (old.get(member.name), before.origins.get(member.name))
        }


@dataclass(frozen=True)
class EnsembleRecord:
    """An ensemble: its active version, the versions before it, and all versions."""

    name: str
    active: int
    epoch: int
    """The commit that made it active; 0 for the first version."""
    previous: tuple[int, ...] = ()
    """The versions that rollbacks return to. The next one is the last."""
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)

    @property
    def highest(self) -> int:
        return max(self.versions)

    @property
    def active_version(self) -> VersionRecord:
        return self.versions[self.active]

    @property
    def made_over(self) -> str | None:
        """The folder of the bundle over whose base it was made at run time; None if it came with a bundle."""
        empty = (each for each in self.versions.values() if each.empty)
        return next((each.source.removeprefix(FROM_BASE) for each in empty), None)

    @property
    def empty(self) -> bool:
        """Whether it was made at run time, and no adapter is loaded under its name now. It cannot be asked then."""
        return self.active_version.empty

    def recent(self, count: int) -> list[int]:
        """At most `count` versions that were active before, without the active one and an empty one, the latest
        first."""
        left = {
            number: record.left
            for number, record in self.versions.items()
            if record.left is not None and number != self.active and not record.empty
        }
        return heapq.nlargest(count, left, key=lambda number: left[number] or 0)

    @property
    def from_bundle(self) -> int | None:
        """The version of a bundle that was active last, or the highest one; None if none is left. What was made at run
        time has the one without an adapter instead."""
        came = {
            number
            for number, each in self.versions.items()
            if each.empty or each.source.startswith(FROM_BUNDLE)
        }
        active = [n for n in (*self.previous, self.active) if n in came]
        return active[-1] if active else max(came, default=None)

    def newest(self, count: int, others: Iterable[int] = ()) -> list[VersionRecord]:
        """The `count` highest versions, the active one, the one that a rollback returns to, and `others`, by number."""
        numbers = {*heapq.nlargest(count, self.versions), self.active, *self.previous[-1:], *others}
        return [self.versions[number] for number in sorted(numbers) if number in self.versions]

    def with_version(self, record: VersionRecord) -> "EnsembleRecord":
        return replace(self, versions={**self.versions, record.ensemble.version: record})

    def without(self, gone: Collection[int]) -> "EnsembleRecord":
        """The record without some versions, which rollbacks then pass over."""
        return replace(
            self,
            previous=tuple(number for number in self.previous if number not in gone),
            versions={n: each for n, each in self.versions.items() if n not in gone},
        )

    def committed(self, to: int, epoch: int, previous: tuple[int, ...]) -> "EnsembleRecord":
        """The record after the commit `epoch`, which made the version `to` active."""
        left = replace(self.active_version, left=epoch)
        return replace(self, active=to, epoch=epoch, previous=previous).with_version(left)

    def history_after_swap(self) -> tuple[int, ...]:
        return (*self.previous, self.active)[-HISTORY:]

    def history_after_rollback(self, to: int) -> tuple[int, ...]:
        """The versions before the last occurrence of `to`."""
        last = len(self.previous) - 1 - self.previous[::-1].index(to)
        return self.previous[:last]
