"""Removes versions that nobody can reach any more, and then the files that no version needs."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from serve.bundle import Bundle, BundleError
from serve.control.acceptance import Acceptance, refusal_of
from serve.control.artifacts.store import Store
from serve.control.catalog import Catalog, version_of
from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.control.errands import Errands
from serve.control.participants import Participants
from serve.control.pruning.reachable import brought_by, needed_files, unreachable_versions
from serve.control.rollout.state import BUSY, Rollout
from serve.control.threads import Threads
from serve.errors import Refusal, RefusedError
from serve.protocol.pruning import PrunedFiles, PrunedVersion, PruneRequest, PruneView
from serve.terminal.words import counted


class Pruner:
    """Prunes while no change is being verified, since that one may rely on files that no version has yet."""

    def __init__(
        self,
        catalog: Catalog,
        database: Database,
        store: Store,
        participants: Participants,
        acceptance: Acceptance,
        threads: Threads,
        bundles: Sequence[Bundle],
    ) -> None:
        self._catalog = catalog
        self._database = database
        self._store = store
        self._participants = participants
        self._acceptance = acceptance
        self._threads = threads
        self._bundles = bundles
        self._errands = Errands()

    async def prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        """Remove what nobody can reach, or with `dry_run` only say what that is. Goes on if the caller leaves."""
        return await self._errands.run(self._prune(request, actor))

    async def stop(self) -> None:
        """End what runs. What is not removed yet is removed by the next prune."""
        await self._errands.stop()

    async def _prune(self, request: PruneRequest, actor: str) -> PruneView | Refusal:
        try:
            async with self._acceptance.paused():
                under_way = await self._threads.run("read", self._database.unfinished)
                busy = frozenset(each.ensemble for each in under_way if each.state in BUSY)
                in_use = self._in_use(under_way)
                found = await self._threads.run("check", self._find, request, in_use, busy)
                if request.dry_run or not (found.versions or found.bytes):
                    return found
                gone = _by_ensemble(found.versions)
                # The database first: a file without a version is found again, a version without its files is not.
                await self._threads.run("write", self._database.prune, gone, actor, _summary(found))
                self._catalog.forget(gone)
                taken = await self._threads.run(
                    "write",
                    self._store.take_away,
                    [each.digest for each in found.adapters],
                    [each.digest for each in found.parameters],
                )
            await self._threads.run("fetch", self._store.delete, taken)
        except (RefusedError, DatabaseError) as error:
            return refusal_of(error)
        except BundleError as error:
            return Refusal(409, f"Nothing is removed, because a bundle cannot be read: {error}")
        except OSError as error:
            return Refusal(
                503,
                f"Files of the store cannot be removed ({error.strerror}); no version needs them, and the next prune "
                "removes what is left.",
            )
        return found

    def _in_use(self, under_way: Sequence[Rollout]) -> Mapping[str, Collection[int]]:
        """Ensemble -> versions that engines hold, or may be told to hold, by this controller or the next one."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        held = {key for each in self._participants.live("engine") for key in each.report.holding}
        for key in held | {key for key, _ in self._catalog.assignments}:
            found[key.rpartition("@")[0]].add(version_of(key))
        for name, record in self._catalog.records.items():
            found[name].update(record.recent(self._catalog.keep_warm + 1))
        for rollout in under_way:
            found[rollout.ensemble].update((rollout.from_version, rollout.to_version))
        return found

    def _find(
        self,
        request: PruneRequest,
        in_use: Mapping[str, Collection[int]],
        busy: Collection[str],
    ) -> PruneView:
        """Blocks. Raises BundleError, DatabaseError and OSError."""
        brought = brought_by(self._bundles)
        records = self._database.ensembles()
        versions = [
            PrunedVersion(ensemble=name, version=number, created=record.versions[number].created)
            for name, record in sorted(records.items())
            if name not in busy
            for number in unreachable_versions(
                record,
                in_use.get(name, ()),
                brought,
                keep_versions=request.keep_versions,
                keep_days=request.keep_days,
            )
        ]
        gone = {(each.ensemble, each.version) for each in versions}
        digests, parameters = needed_files(records.values(), gone, brought)
        return PruneView(
            dry_run=request.dry_run,
            versions=versions,
            adapters=_files(self._store.adapters(), digests),
            parameters=_files(self._store.parameter_files(), parameters),
            waiting=sorted(busy),
        )


def _files(found: Mapping[str, int], needed: Collection[str]) -> list[PrunedFiles]:
    return [
        PrunedFiles(digest=digest, bytes=size)
        for digest, size in sorted(found.items())
        if digest not in needed
    ]


def _by_ensemble(versions: Sequence[PrunedVersion]) -> dict[str, list[int]]:
    gone: defaultdict[str, list[int]] = defaultdict(list)
    for each in versions:
        gone[each.ensemble].append(each.version)
    return dict(gone)


def _summary(found: PruneView) -> str:
    return (
        f"{counted(len(found.versions), 'version')}, {counted(len(found.adapters), 'adapter')} and "
        f"{counted(len(found.parameters), 'file')} of fitted parameters, {found.bytes / 1e6:.1f} MB"
    )
