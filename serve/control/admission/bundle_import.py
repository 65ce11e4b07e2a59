"""Imports bundles into the store and the database at the start."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.bundle import Bundle, BundleError
from serve.control.admission.admission import Admission, adapters_of
from serve.control.admission.difference import NotServed, kept_ones, same_content
from serve.control.admission.pools import Pools
from serve.control.artifacts.store import Store
from serve.control.clock import now
from serve.control.database.database import Database
from serve.control.origins import bundle_origins
from serve.control.records import FROM_BUNDLE, EnsembleRecord, VersionRecord
from serve.manifest import Ensemble

IMPORTER = "choir"
"""The actor of imports in the audit."""


@dataclass(frozen=True)
class Imported:
    """The ensembles of the bundles as the database has them."""

    records: dict[str, EnsembleRecord]
    differences: dict[str, list[str]]
    """Ensemble -> what of the bundles was left out, one sentence each."""
    not_served: dict[str, NotServed]
    """Ensemble -> the version that this start brought, where another one is active."""


def import_bundles(
    pools: Pools, database: Database, store: Store, admission: Admission
) -> Imported:
    """Import all versions that the database does not have.

    The highest version of a new ensemble becomes active. For other ensembles, the database keeps its active version.
    What has another content under a number that the database has gets the next number. Ensembles that are in no bundle
    stay in the database and are not served, but for those that were made at run time over the base of one. Raises
    BundleError, StoreError and DatabaseError."""
    known = database.ensembles()
    differences: dict[str, list[str]] = {}
    not_served: dict[str, NotServed] = {}
    for name, versions in _manifests(pools.bundles).items():
        record = known.get(name)
        if record is None:
            new = [_import(*each, store, admission) for each in versions.values()]
            database.add_ensemble(name, max(versions), new, IMPORTER)
            differences[name] = []
            continue
        new = [
            _import(*each, store, admission)
            for n, each in versions.items()
            if n not in record.versions
        ]
        for each in new:
            record = record.with_version(each)
        bundle, ensemble = versions[max(versions)]
        number = same_content(record, bundle, ensemble)
        if number is None:
            number = max(record.highest, *versions) + 1
            renumbered = ensemble.model_copy(update={"version": number})
            new.append(_import(bundle, renumbered, store, admission))
            record = record.with_version(new[-1])
        database.add_versions(new, IMPORTER)
        differences[name] = kept_ones(record, versions)
        found = NotServed.of(record, number, bundle)
        if found is not None:
            not_served[name] = found
            database.not_active(IMPORTER, record, record.versions[number], found.said)
    records = database.ensembles()
    for name, record in records.items():
        folder = record.made_over
        if folder is not None and pools.adopt(name, folder):
            differences.setdefault(name, [])
    return Imported({name: records[name] for name in differences}, differences, not_served)


def _manifests(bundles: Sequence[Bundle]) -> dict[str, dict[int, tuple[Bundle, Ensemble]]]:
    """Ensemble -> version -> its bundle and manifest. Raises BundleError if two bundles contradict each other."""
    found: dict[str, dict[int, tuple[Bundle, Ensemble]]] = {}
    for bundle in bundles:
        for ensemble in bundle.ensembles():
            versions = found.setdefault(ensemble.name, {})
            other, same = versions.setdefault(ensemble.version, (bundle, ensemble))
            if same != ensemble:
                raise BundleError(
                    f"{other.path} and {bundle.path} both have {ensemble.id}, with different "
                    "contents; rename one of the ensembles."
                )
    if not found:
        raise BundleError(f"{bundles[0].path} has no ensembles, so there is nothing to serve.")
    return found


def _import(
    bundle: Bundle, ensemble: Ensemble, store: Store, admission: Admission
) -> VersionRecord:
    for ref in adapters_of([ensemble]):
        admission.import_adapter(bundle, ref)
    file = bundle.fusion_path(ensemble)
    parameters = store.keep_parameters(file) if file is not None else None
    origins = bundle_origins(bundle, ensemble)
    return VersionRecord(
        ensemble, f"{FROM_BUNDLE}{bundle.path}", now(), parameters, origins=origins
    )
