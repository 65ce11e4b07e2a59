"""What a controller is started with, and what it opens and imports before it can start."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serve.config.settings import Settings
from serve.control.admission.admission import Admission
from serve.control.admission.bundle_import import Imported, import_bundles
from serve.control.admission.pools import Pool, Pools
from serve.control.artifacts.sources import Sources
from serve.control.artifacts.store import Store
from serve.control.database.database import Database
from serve.control.errors import StartError
from serve.control.records import EnsembleRecord
from serve.errors import RefusedError, did_you_mean
from serve.location import Location
from serve.protocol.capacity import Capacity, CapacityPlan, CapacityPlans
from serve.protocol.messages import ParticipantKind


@dataclass(frozen=True)
class ControllerOptions:
    """The settings that concern the controller."""

    pools: Sequence[Pool]
    store_dir: Path
    adapter_roots: Sequence[Path] = ()
    """Folders that adapters may come from, beside the bundles."""
    adapter_prefixes: Sequence[Location] = ()
    """Remote places that adapters may come from."""
    max_adapter_gb: float = 16
    fetch_timeout_seconds: float = 1800
    database_url: str | None = None
    """None: a SQLite file in the store."""
    expected: Mapping[ParticipantKind, int] = field(default_factory=dict)
    """The replicas of each kind that are meant to run."""
    keep_warm: int = 1
    pinned: Collection[str] | None = None
    """The ensembles that are always loaded. None: all of them."""
    lease_seconds: float = 10
    prepare_timeout_seconds: float = 120

    @classmethod
    def of(cls, settings: Settings, pools: Sequence[Pool]) -> "ControllerOptions":
        url = settings.database_url
        return cls(
            pools=pools,
            store_dir=settings.store_dir,
            adapter_roots=settings.adapter_roots,
            adapter_prefixes=[Location.parse(prefix) for prefix in settings.adapter_prefixes],
            max_adapter_gb=settings.max_adapter_gb,
            fetch_timeout_seconds=settings.fetch_timeout_seconds,
            database_url=url.get_secret_value() if url else None,
            expected={"engine": sum(pool.replicas for pool in pools), "gateway": settings.gateways},
            keep_warm=settings.keep_warm,
            pinned=settings.pinned,
            lease_seconds=settings.lease_seconds,
            prepare_timeout_seconds=settings.prepare_timeout_seconds,
        )


@dataclass(frozen=True)
class Opened:
    """The store and the database, with the bundles imported into them."""

    store: Store
    pools: Pools
    capacity: CapacityPlans
    admission: Admission
    database: Database
    imported: Imported

    @classmethod
    def of(cls, options: ControllerOptions) -> "Opened":
        """Open the store and the database, import the bundles, and check that engines can serve what is active.

        Blocks. Raises StartError, BundleError, StoreError and DatabaseError, each with one sentence."""
        store, pools = Store(options.store_dir), Pools(options.pools)
        capacity = CapacityPlans(
            {pool.name: _capacity(pool, store, options.pinned) for pool in options.pools},
            pools.name_of,
        )
        sources = Sources(
            [*(bundle.path for bundle in pools.bundles), *options.adapter_roots],
            options.adapter_prefixes,
            max_bytes=int(options.max_adapter_gb * 1e9),
            seconds=options.fetch_timeout_seconds,
        )
        admission = Admission(store, sources, pools)
        database = Database.open(options.database_url or f"sqlite:///{store.folder / 'choir.db'}")
        try:
            imported = import_bundles(pools, database, store, admission)
            _check_pinned(options.pinned or (), imported.records)
            _check_active(list(imported.records.values()), admission, capacity)
        except BaseException:
            database.close()
            raise
        return cls(store, pools, capacity, admission, database, imported)


def _capacity(pool: Pool, store: Store, pinned: Collection[str] | None) -> CapacityPlan:
    return CapacityPlan(
        Capacity(pool.limits.adapter_slots, pool.limits.host_adapters),
        store.adapter,
        None if pinned is None else frozenset(pinned),
    )


def _check_pinned(pinned: Collection[str], names: Collection[str]) -> None:
    """Raises StartError if there is no such ensemble."""
    if unknown := sorted(set(pinned) - set(names)):
        known = ", ".join(sorted(names))
        raise StartError(
            f"There is no ensemble {unknown[0]!r} to be pinned; there are {known}."
            f"{did_you_mean(unknown[0], names)}"
        )


def _check_active(
    records: Sequence[EnsembleRecord], admission: Admission, capacity: CapacityPlans
) -> None:
    """Raises StartError, StoreError and BundleError."""
    active = [record.active_version for record in records]
    for version in active:
        try:
            admission.check_known(version)
        except RefusedError as refused:
            raise StartError(f"{version.ensemble.id}: {refused}") from refused
    if (reason := capacity.no_room_to_start([each.ensemble for each in active])) is not None:
        raise StartError(reason)
