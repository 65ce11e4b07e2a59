"""Whether LoRAs fit into an engine.

This is the one place that knows which adapters take room, how many an engine loads, what fits beside what, and how much
stays free for ensembles on demand. The controller plans with it, and the engine's agent evicts with it.

Two other questions are answered inside the engine: which requests run at once (`engine/adapters/slot_queue.py`), and
whether a group finds sequences and blocks of the KV cache (`engine/lockstep/room.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from serve.adapter import SOFT, AdapterError, adapter_kind
from serve.engine.interface import Version
from serve.manifest import Ensemble

_kind_of = lru_cache(maxsize=16384)(adapter_kind)
"""Folders in the store never change, and with hundreds of adapters each kind is asked for many times."""


def takes_slot(folder: Path) -> bool:
    """Return whether the adapter in a folder needs a slot: a LoRA does, a soft adapter does not.

    An adapter that cannot be read counts as a LoRA."""
    try:
        return _kind_of(folder) not in SOFT
    except AdapterError:
        return True


def loras_of(version: Version) -> frozenset[str]:
    """Return the digests of a version's distinct LoRAs."""
    folders = version.adapters.items()
    return frozenset(digest for digest, folder in folders if takes_slot(Path(folder)))


def has_soft(version: Version) -> bool:
    """Return whether a version has soft adapters. They take no slot, but host memory of the engine's workers."""
    return len(loras_of(version)) < len(version.adapters)


@dataclass(frozen=True)
class Capacity:
    """How many LoRAs one engine takes."""

    adapter_slots: int
    """How many distinct LoRAs can run at once."""
    host_adapters: int | None = None
    """How many distinct LoRAs can be loaded at once, those in slots included; None: as many as there are slots."""

    @property
    def loadable(self) -> int:
        """How many distinct LoRAs can be loaded at once."""
        return self.host_adapters or self.adapter_slots

    def holds(self, *loras: Iterable[str]) -> bool:
        """Return whether all these LoRAs (digests) can be loaded at once. A digest in several arguments counts once."""
        return len(set().union(*loras)) <= self.loadable


@dataclass(frozen=True)
class CapacityPlan:
    """Which ensembles always have room in each engine, and which share the rest."""

    capacity: Capacity
    folder: Callable[[str], Path]
    """Returns an adapter's folder for its digest."""
    pinned: frozenset[str] | None = None
    """Names of the ensembles that are always loaded; None: all of them. The others are loaded on demand."""

    def on_demand(self, name: str) -> bool:
        """Return whether the versions of an ensemble are loaded on demand."""
        return self.pinned is not None and name not in self.pinned

    def pinning(self, names: Iterable[str]) -> "CapacityPlan":
        """Return the plan that holds while the ensembles `names` are always loaded, too."""
        return self if self.pinned is None else replace(self, pinned=self.pinned.union(names))

    def warm(
        self,
        recent: Iterable[Ensemble],
        active: Sequence[Ensemble],
        candidates: Sequence[Ensemble],
        compared: Iterable[str],
    ) -> list[Ensemble]:
        """Return the `recent` versions that can stay warm, in their order.

        They take the room that is left beside `active` and `candidates`; each one that does not fit is left out. A
        version on demand needs no room of its own. The ensembles `compared` with a candidate are always loaded."""
        during = self.pinning(compared)
        loaded = during._needed(active, candidates)
        room = self.capacity.loadable - during._reserved(active)
        warm = []
        for ensemble in recent:
            more = set() if self.on_demand(ensemble.name) else self._loras([ensemble])
            if len(loaded | more) <= room:
                loaded |= more
                warm.append(ensemble)
        return warm

    def no_room_for(
        self, candidate: Ensemble, active: Sequence[Ensemble], others: Sequence[Ensemble]
    ) -> str | None:
        """Return why a candidate does not fit beside what must stay loaded, in a sentence; None if it fits.

        What must stay: `active` versions that are always loaded, the `others` (candidates of other rollouts), and the
        room that ensembles on demand share. Warm versions do not count, because they make room."""
        own = len(self._loras([candidate]))
        if own > self.capacity.adapter_slots:
            return (
                f"{candidate.id} does not fit: it has {own} distinct LoRAs, and the engine runs "
                f"{self.capacity.adapter_slots} at once. Start with more slots (--engine '{{\"max_loras\": {own}}}')."
            )
        reserved = self._reserved(active)
        total = len(self._needed(active, [*others, candidate])) + reserved
        if total <= self.capacity.loadable:
            return None
        stay = [*self._always(active), *others]
        occupied = ", ".join(f"{each.id} ({len(self._loras([each]))})" for each in stay)
        if reserved:
            occupied += f"{' and ' if occupied else ''}ensembles on demand ({reserved})"
        return (
            f"{candidate.id} does not fit: with it the engine would hold {total} distinct LoRAs, and it has "
            f"{self.capacity.loadable} slots. They are occupied by {occupied}. Start with more slots "
            f"(--engine '{{\"max_loras\": {total}}}'), or keep more in host memory (host_adapters: {total})."
        )

    def no_room_to_start(self, active: Sequence[Ensemble]) -> str | None:
        """Return why an engine cannot serve the `active` versions, in a sentence; None if it can.

        It has to hold those that are always loaded, and beside them any one of the others."""
        for each in active:
            own = len(self._loras([each]))
            if own > self.capacity.adapter_slots:
                return (
                    f"{each.id} has {own} distinct LoRAs, and an engine has {self.capacity.adapter_slots} slots; start "
                    f"with more (--engine '{{\"max_loras\": {2 * own + 1}}}')."
                )
        total = len(self._needed(active, ())) + self._reserved(active)
        if total <= self.capacity.loadable:
            return None
        return (
            f"The active versions have {total} distinct LoRAs, and an engine has {self.capacity.loadable} slots; start "
            f"with more (--engine '{{\"max_loras\": {2 * total + 1}}}'), keep more in host memory (host_adapters), or "
            "have fewer ensembles always loaded (pinned)."
        )

    def _needed(self, active: Iterable[Ensemble], candidates: Iterable[Ensemble]) -> set[str]:
        """Return the LoRAs that must be loaded, whatever requests come."""
        return self._loras([*self._always(active), *candidates])

    def _reserved(self, active: Iterable[Ensemble]) -> int:
        """Return how many LoRAs must find room beside those: as many as the largest ensemble on demand has, so that
        each of them can be loaded."""
        lazy = [each for each in active if self.on_demand(each.name)]
        return max((len(self._loras([each])) for each in lazy), default=0)

    def _always(self, ensembles: Iterable[Ensemble]) -> list[Ensemble]:
        return [each for each in ensembles if not self.on_demand(each.name)]

    def _loras(self, ensembles: Iterable[Ensemble]) -> set[str]:
        """Return the digests of the distinct LoRAs of all `ensembles`."""
        digests = {digest for ensemble in ensembles for digest in ensemble.digests}
        return {digest for digest in digests if takes_slot(self.folder(digest))}


@dataclass(frozen=True)
class CapacityPlans:
    """One plan for each pool of engines. Each ensemble takes room in its own pool alone."""

    plans: Mapping[str, CapacityPlan]
    """Pool -> its plan."""
    pool_of: Callable[[str], str]
    """Returns an ensemble's pool for its name."""

    def on_demand(self, name: str) -> bool:
        """Return whether the versions of an ensemble are loaded on demand."""
        return self.plans[self.pool_of(name)].on_demand(name)

    def pinning(self, names: Iterable[str]) -> "CapacityPlans":
        """See `CapacityPlan.pinning`."""
        named = frozenset(names)
        return replace(self, plans={pool: plan.pinning(named) for pool, plan in self.plans.items()})

    def warm(
        self,
        recent: Iterable[Ensemble],
        active: Sequence[Ensemble],
        candidates: Sequence[Ensemble],
        compared: Iterable[str],
    ) -> list[Ensemble]:
        """See `CapacityPlan.warm`."""
        latest, named = list(recent), frozenset(compared)
        return [
            ensemble
            for pool, plan in self.plans.items()
            for ensemble in plan.warm(
                self._in(pool, latest), self._in(pool, active), self._in(pool, candidates), named
            )
        ]

    def no_room_for(
        self, candidate: Ensemble, active: Sequence[Ensemble], others: Sequence[Ensemble]
    ) -> str | None:
        """See `CapacityPlan.no_room_for`."""
        pool = self.pool_of(candidate.name)
        return self.plans[pool].no_room_for(
            candidate, self._in(pool, active), self._in(pool, others)
        )

    def no_room_to_start(self, active: Sequence[Ensemble]) -> str | None:
        """See `CapacityPlan.no_room_to_start`."""
        reasons = (
            plan.no_room_to_start(self._in(pool, active)) for pool, plan in self.plans.items()
        )
        return next((reason for reason in reasons if reason is not None), None)

    def _in(self, pool: str, ensembles: Iterable[Ensemble]) -> list[Ensemble]:
        return [each for each in ensembles if self.pool_of(each.name) == pool]
