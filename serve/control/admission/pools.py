"""The pools of engines: one for each base, and for each way of using it.

Each ensemble belongs to the pool of the base that its bundle names. Engines of other pools never hear of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.base.folder import BaseKind
from serve.bundle import Bundle, BundleError
from serve.digest import DigestError, folder_digest


@dataclass(frozen=True)
class EngineLimits:
    """The limits that all engines of a pool are started with. Candidates are checked against them without an engine."""

    adapter_slots: int
    """Distinct LoRAs that run at once."""
    max_lora_rank: int
    base_kind: BaseKind
    base_path: Path | None = None
    """The base's folder; None for a base on a hub. Shapes are not checked then."""
    max_members: int = 64
    """Members of one ensemble."""
    host_adapters: int | None = None
    """Distinct LoRAs that can be loaded at once; None: as many as slots."""


ONLY = "default"
"""The name of the only pool. It stays when the server is deployed again with another bundle of the same base."""


@dataclass(frozen=True)
class Pool:
    """The engines of one base."""

    name: str
    bundles: Sequence[Bundle]
    """Those of this base, at least one."""
    limits: EngineLimits
    replicas: int = 1
    """How many engines are meant to run."""


class Pools:
    """Which pool serves which ensemble."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        """Raises BundleError if an ensemble is in bundles of two pools."""
        self.all = {pool.name: pool for pool in pools}
        self._of: dict[str, Pool] = {}
        for pool in pools:
            for name in sorted({each.name for one in pool.bundles for each in one.ensembles()}):
                other = self._of.setdefault(name, pool)
                if other is not pool:
                    raise BundleError(
                        f"{other.bundles[0].path} and {pool.bundles[0].path} both have an ensemble {name}, over "
                        "different bases; rename one of the ensembles."
                    )

    @property
    def bundles(self) -> list[Bundle]:
        """The bundles of all pools."""
        return [bundle for pool in self.all.values() for bundle in pool.bundles]

    def adopt(self, ensemble: str, folder: str) -> bool:
        """Take in an ensemble that was made at run time over the base of the bundle in a folder. Return whether that
        bundle is served."""
        for pool in self.all.values():
            if any(str(bundle.path) == folder for bundle in pool.bundles):
                self._of.setdefault(ensemble, pool)
                return True
        return False

    def of(self, ensemble: str) -> Pool:
        """Return the pool of an ensemble that a bundle has, or that was taken in."""
        return self._of[ensemble]

    def name_of(self, ensemble: str) -> str:
        """Return the name of an ensemble's pool."""
        return self._of[ensemble].name


def by_base(bundles: Sequence[Bundle]) -> Mapping[str, list[Bundle]]:
    """Return the bundles of each pool, by the pool's name.

    Bundles of one base and one kind share a pool. The only one is called `default`. Of several, each is called like the
    folder of its first bundle, with a number if another pool is called so. Raises BundleError."""
    pools: list[list[Bundle]] = []
    for bundle in bundles:
        for pool in pools:
            if _same_base(pool[0], bundle):
                pool.append(bundle)
                break
        else:
            pools.append([bundle])
    if len(pools) == 1:
        return {ONLY: pools[0]}
    named: dict[str, list[Bundle]] = {}
    for pool in pools:
        name = folder = pool[0].path.name
        number = 2
        while name in named:
            name, number = f"{folder}-{number}", number + 1
        named[name] = pool
    return named


def _same_base(one: Bundle, other: Bundle) -> bool:
    if one.base_kind() != other.base_kind():
        return False
    if (one.base_source, one.base_revision) == (other.base_source, other.base_revision):
        return True
    return _same_files(one, other)


def _same_files(one: Bundle, other: Bundle) -> bool:
    """Whether two folders hold the same base. Their contents are read only if names and sizes are the same."""
    if one.base_folder is None or other.base_folder is None:
        return False
    if _sizes(one.base_folder) != _sizes(other.base_folder):
        return False
    try:
        return folder_digest(one.base_folder) == folder_digest(other.base_folder)
    except DigestError as error:
        raise BundleError(f"The bases of two bundles cannot be compared: {error}") from error


def _sizes(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.stat().st_size for path in files}
