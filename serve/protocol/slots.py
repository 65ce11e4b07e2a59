"""Room in an engine: LoRAs take slots, prefix and prompt adapters take none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from serve.adapter import SOFT, AdapterError, adapter_kind
from serve.engine.interface import Version
from serve.manifest import Ensemble

_kind_of = lru_cache(maxsize=16384)(adapter_kind)
"""Folders of the store never change, and with hundreds of adapters each is asked for again and again."""


def takes_slot(folder: Path) -> bool:
    """Whether the adapter in a folder takes a slot; one that cannot be read is taken for one that does."""
    try:
        return _kind_of(folder) not in SOFT
    except AdapterError:
        return True


@dataclass(frozen=True)
class Slots:
    """An engine's room, and which ensembles always have theirs."""

    count: int
    """Distinct LoRAs that an engine holds, in its slots or in host memory."""
    folder: Callable[[str], Path]
    """An adapter's folder by its digest."""
    at_once: int
    """Of these, how many can run at once: the slots."""
    pinned: frozenset[str] | None = None
    """Ensembles that are always loaded; None: all. The others share what is left by turns."""

    def taken(self, ensembles: Iterable[Ensemble]) -> set[str]:
        """Digests of the distinct LoRAs of all `ensembles`."""
        digests = {digest for ensemble in ensembles for digest in ensemble.digests}
        return {digest for digest in digests if takes_slot(self.folder(digest))}

    def on_demand(self, name: str) -> bool:
        """Whether the ensemble's versions are loaded by requests for them."""
        return self.pinned is not None and name not in self.pinned

    def always(self, ensembles: Iterable[Ensemble]) -> list[Ensemble]:
        """Those that are not loaded on demand."""
        return [each for each in ensembles if not self.on_demand(each.name)]

    def pinning(self, names: Iterable[str]) -> "Slots":
        """The same room while these ensembles are always loaded, too."""
        return self if self.pinned is None else replace(self, pinned=self.pinned.union(names))

    def shared(self, active: Iterable[Ensemble]) -> int:
        """What is kept free for ensembles on demand, so that each of them can be loaded: the largest one's LoRAs."""
        lazy = [each for each in active if self.on_demand(each.name)]
        return max((len(self.taken([each])) for each in lazy), default=0)


def loras_of(version: Version) -> frozenset[str]:
    """Digests of a version's distinct LoRAs, by their folders."""
    folders = version.adapters.items()
    return frozenset(digest for digest, folder in folders if takes_slot(Path(folder)))


def has_soft(version: Version) -> bool:
    """Whether a version has adapters that take no slot, but host memory of the engine's workers."""
    return len(loras_of(version)) < len(version.adapters)
