"""A mirror of the database in memory: ensembles and the rollouts under way. Participants are answered from it."""

from collections.abc import Collection, Mapping

from serve.control.artifacts.store import Store
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.plan import Assignments, wanted_versions
from serve.control.rollout.state import BUSY, UNCOMMITTED, Rollout
from serve.engine.interface import Version
from serve.errors import RefusedError, did_you_mean
from serve.manifest import Ensemble
from serve.protocol.capacity import CapacityPlans
from serve.protocol.messages import AssignedVersion


class Catalog:
    """Ensembles, the rollouts under way, and what engines must hold because of them. Writes nothing."""

    def __init__(
        self,
        records: Mapping[str, EnsembleRecord],
        store: Store,
        incarnation: int,
        keep_warm: int,
        capacity: CapacityPlans,
    ) -> None:
        self._records = dict(records)
        self._store = store
        self.keep_warm = keep_warm
        self._capacity = capacity
        self._rollouts: dict[str, Rollout] = {}
        self.assignments = Assignments(incarnation)
        self._plan()

    @property
    def records(self) -> Mapping[str, EnsembleRecord]:
        return self._records

    def record(self, name: str) -> EnsembleRecord:
        """Raises RefusedError (404)."""
        if name not in self._records:
            raise self._unknown(name)
        return self._records[name]

    @property
    def shown(self) -> dict[str, EnsembleRecord]:
        """The ensembles that can be asked, by name."""
        return {name: record for name, record in self._records.items() if not record.empty}

    def shown_record(self, name: str) -> EnsembleRecord:
        """Raises RefusedError (404)."""
        record = self.record(name)
        if record.empty:
            raise self._unknown(name)
        return record

    def _unknown(self, name: str) -> RefusedError:
        known = self.shown
        return RefusedError(
            404,
            f"There is no ensemble {name[:80]!r}; there are {', '.join(sorted(known))}."
            f"{did_you_mean(name[:80], known)}",
            "unknown_ensemble",
        )

    @property
    def rollouts(self) -> Collection[Rollout]:
        """The rollouts that have not ended, the earliest first."""
        return self._rollouts.values()

    def running(self, rollout_id: str) -> Rollout | None:
        """The rollout with this id; None if it has ended or does not exist."""
        return self._rollouts.get(rollout_id)

    def rollout_of(self, name: str) -> Rollout | None:
        """The latest rollout of an ensemble that has not ended; None if all have."""
        of = [rollout for rollout in self._rollouts.values() if rollout.ensemble == name]
        return of[-1] if of else None

    def check_idle(self, name: str) -> None:
        """Raises RefusedError (409) while a rollout of the ensemble is not committed on all gateways."""
        rollout = self.rollout_of(name)
        if rollout is not None and rollout.state in BUSY:
            rest = "promote or abort it first" if rollout.trial else "wait until it has ended"
            raise RefusedError(
                409,
                f"The rollout {rollout.id} of {name} to version {rollout.to_version} is "
                f"{rollout.state}; {rest}.",
                "rollout_in_progress",
            )

    def check_room(self, new: Rollout, candidate: Ensemble) -> None:
        """Raises RefusedError (409) if the candidate of a new rollout does not fit beside what must stay loaded."""
        active = [record.active_version.ensemble for record in self._records.values()]
        others = [each for each in self._rollouts.values() if each.state in UNCOMMITTED]
        tried = [self._version_record(rollout.candidate).ensemble for rollout in others]
        compared = (each.ensemble for each in (*others, new) if each.tries)
        reason = self._capacity.pinning(compared).no_room_for(candidate, active, tried)
        if reason is not None:
            raise RefusedError(409, reason, "no_room")

    def added(self, record: EnsembleRecord) -> None:
        """Add an ensemble that was made at run time."""
        self._records[record.name] = record

    def started(self, rollout: Rollout, candidate: VersionRecord) -> None:
        """Add a rollout that has started, and its candidate."""
        record = self._records[rollout.ensemble]
        self._records[rollout.ensemble] = record.with_version(candidate)
        self._rollouts[rollout.id] = rollout
        self._plan()

    def resumed(self, rollout: Rollout) -> None:
        """Add a rollout of an earlier controller. If it is committed, gateways may still send requests to the version
        that it replaced, and by its number to the one that is warm no longer because of it. So these drain."""
        self._rollouts[rollout.id] = rollout
        self._plan()
        if rollout.state not in UNCOMMITTED:
            before = self._records[rollout.ensemble].recent(self.keep_warm + 1)
            for version in (rollout.from_version, *before):
                self.assignments.drain(f"{rollout.ensemble}@{version}")

    def aborted_lately(self, rollout: Rollout) -> None:
        """Hold the candidate of a trial that an earlier controller aborted, perhaps without telling all gateways."""
        self.assignments.drain(rollout.candidate)

    def moved_on(self) -> None:
        """Plan again, because a rollout under way has another state."""
        self._plan()

    def committed(self, rollout: Rollout, epoch: int, history: tuple[int, ...]) -> None:
        """Make the rollout's version active."""
        record = self._records[rollout.ensemble]
        self._records[rollout.ensemble] = record.committed(rollout.to_version, epoch, history)
        self._plan()

    def ended(self, rollout: Rollout) -> None:
        """Remove a rollout that has ended."""
        del self._rollouts[rollout.id]
        self._plan()

    def pool_of(self, name: str) -> str:
        """The pool of engines that serve an ensemble."""
        return self._capacity.pool_of(name)

    def assigned(self, pool: str | None = None) -> tuple[AssignedVersion, ...]:
        """The versions that the engines of a pool must hold now; None: of all pools."""
        found = []
        for key, wanted in self.assignments:
            name = key.rpartition("@")[0]
            if pool in (None, self.pool_of(name)):
                found.append(
                    AssignedVersion(
                        self._version(key),
                        wanted.role,
                        wanted.attempt,
                        wanted.trial,
                        on_demand=self._capacity.on_demand(name),
                        compared=wanted.compared,
                        pool=self.pool_of(name),
                    )
                )
        return tuple(found)

    def active(self) -> dict[str, int]:
        return {name: record.active for name, record in self.shown.items()}

    def forget(self, gone: Mapping[str, Collection[int]]) -> None:
        """Remove versions (ensemble -> numbers) that nothing uses."""
        for name in gone.keys() & self._records.keys():
            self._records[name] = self._records[name].without(gone[name])

    def _plan(self) -> None:
        self.assignments.want(
            wanted_versions(
                self._records.values(), self._rollouts.values(), self.keep_warm, self._capacity
            )
        )

    def _version(self, key: str) -> Version:
        record = self._version_record(key)
        return Version(
            ensemble=record.ensemble,
            adapters={
                digest: str(self._store.adapter(digest)) for digest in record.ensemble.digests
            },
            parameters=str(self._store.parameters(record.parameters))
            if record.parameters
            else None,
            parameters_digest=record.parameters,
            allow_stale_fusion=record.allow_stale_fusion,
        )

    def _version_record(self, key: str) -> VersionRecord:
        return self._records[key.rpartition("@")[0]].versions[version_of(key)]


def version_of(key: str) -> int:
    """The number in `name@version`."""
    return int(key.rpartition("@")[2])
