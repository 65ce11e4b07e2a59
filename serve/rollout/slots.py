"""Room in an engine: LoRAs take slots, prefix and prompt adapters take none."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.adapter import SOFT, AdapterError, adapter_kind
from serve.manifest import Ensemble


def takes_slot(folder: Path) -> bool:
    """Whether the adapter in a folder takes a slot; one that cannot be read is taken for one that does."""
    try:
        return adapter_kind(folder) not in SOFT
    except AdapterError:
        return True


@dataclass(frozen=True)
class Slots:
    """An engine's slots, and where adapters lie."""

    count: int
    folder: Callable[[str], Path]
    """An adapter's folder by its digest."""

    def taken(self, ensembles: Iterable[Ensemble]) -> set[str]:
        """Digests of the distinct LoRAs of all `ensembles`."""
        digests = {digest for ensemble in ensembles for digest in ensemble.digests}
        return {digest for digest in digests if takes_slot(self.folder(digest))}


def slots_taken(adapters: Iterable[Mapping[str, str]]) -> int:
    """Slots that versions take together, by their folders (`Version.adapters`)."""
    folders = {digest: folder for each in adapters for digest, folder in each.items()}
    return sum(takes_slot(Path(folder)) for folder in folders.values())
