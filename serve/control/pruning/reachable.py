"""Finds what somebody can still reach. The rest can be removed."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from serve.bundle import Bundle
from serve.control.clock import seconds_since
from serve.control.records import EnsembleRecord
from serve.digest import file_digest
from serve.manifest import Ensemble

DAY = 86_400.0


@dataclass
class Brought:
    """What the bundles of the server hold. A start imports it again, and a swap may name it, so it all stays."""

    versions: set[tuple[str, int]] = field(default_factory=set)
    """Ensemble and number, as the bundle has it."""
    sources: set[str] = field(default_factory=set)
    """The sources of versions that came with these bundles, perhaps under another number."""
    digests: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)


def brought_by(bundles: Sequence[Bundle]) -> Brought:
    """All that the bundles hold: their ensembles and the rungs of their leaderboards. Raises BundleError."""
    brought = Brought()
    for bundle in bundles:
        brought.sources.add(f"bundle:{bundle.path}")
        ensembles = bundle.ensembles()
        brought.versions.update((each.name, each.version) for each in ensembles)
        for ensemble in (*ensembles, *map(bundle.read_rung, bundle.rung_files())):
            brought.digests.update(ensemble.digests)
            file = bundle.fusion_path(ensemble)
            if file is not None:
                brought.parameters.add(file_digest(file))
    return brought


def unreachable_versions(
    record: EnsembleRecord,
    in_use: Collection[int],
    brought: Brought,
    *,
    keep_versions: int,
    keep_days: float,
) -> list[int]:
    """The versions of an ensemble that can go, by number.

    The highest one never goes: its number would be given again, to other content. Nor does the one that a name made at
    run time began with: an unload returns to it."""
    kept = {record.active, record.highest, *in_use}
    kept.update(sorted(record.versions)[-keep_versions:])
    kept.update(record.previous[-keep_versions:])
    for number, version in record.versions.items():
        young = seconds_since(version.created) < keep_days * DAY
        came = version.source in brought.sources or (record.name, number) in brought.versions
        if young or came or version.empty:
            kept.add(number)
    return sorted(set(record.versions) - kept)


def needed_files(
    records: Iterable[EnsembleRecord], gone: Collection[tuple[str, int]], brought: Brought
) -> tuple[set[str], set[str]]:
    """The digests of the adapters, and those of the fitted parameters, that are needed once the versions `gone`
    (ensemble, number) are."""
    digests, parameters = set(brought.digests), set(brought.parameters)
    for ensemble, file in _left(records, gone):
        digests.update(ensemble.digests)
        if file is not None:
            parameters.add(file)
    return digests, parameters


def _left(
    records: Iterable[EnsembleRecord], gone: Collection[tuple[str, int]]
) -> Iterator[tuple[Ensemble, str | None]]:
    for record in records:
        for number, version in record.versions.items():
            if (record.name, number) not in gone:
                yield version.ensemble, version.parameters
