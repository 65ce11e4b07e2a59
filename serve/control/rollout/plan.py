"""Which versions engines must hold, and what for: computed from what is active, warm and being tried."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import UNCOMMITTED, Rollout
from serve.protocol.capacity import CapacityPlans
from serve.protocol.messages import Role, is_routable
from serve.protocol.strategy import Strategy


@dataclass(frozen=True)
class Wanted:
    """Why a version is to be held."""

    role: Role
    attempt: str | None = None
    trial: Strategy | None = None
    """How the attempt tries it out on requests, if it does."""
    compared: bool = False
    """Whether a candidate is tried out against it."""


def wanted_versions(
    ensembles: Iterable[EnsembleRecord],
    rollouts: Iterable[Rollout],
    keep_warm: int,
    capacity: CapacityPlans,
) -> dict[str, Wanted]:
    """Return why each version is wanted, by `name@version`. Those of an empty ensemble are not, but for a candidate.

    Active versions and candidates come first. Of the `keep_warm` latest versions of each ensemble, those that fit
    beside them stay warm, the latest first. So warm versions make room for a candidate, and come back if it is aborted.
    Versions on demand are all wanted, and share the room that the others leave. The active version that a candidate is
    compared with stays loaded: the time that its requests would wait for it would count in the candidate's favour."""
    records = {record.name: record for record in ensembles}
    wanted: dict[str, Wanted] = {}
    tried = [rollout for rollout in rollouts if rollout.state in UNCOMMITTED]
    compared = {rollout.ensemble for rollout in tried if rollout.tries}
    for record in records.values():
        if record.empty:
            continue
        key = record.active_version.ensemble.id
        wanted[key] = Wanted("active", compared=record.name in compared)
    for rollout in tried:
        wanted[rollout.candidate] = Wanted("candidate", rollout.id, rollout.trial)
    active = [record.active_version.ensemble for record in records.values()]
    candidates = [_version(records, rollout.candidate).ensemble for rollout in tried]
    recent = [
        record.versions[version]
        for record in records.values()
        if not record.empty
        for version in record.recent(keep_warm)
    ]
    recent.sort(key=lambda version: version.left or 0, reverse=True)
    for ensemble in capacity.warm(
        [version.ensemble for version in recent], active, candidates, compared
    ):
        wanted[ensemble.id] = replace(wanted.get(ensemble.id, Wanted("warm")), role="warm")
    return wanted


def _version(records: Mapping[str, EnsembleRecord], key: str) -> VersionRecord:
    name, _, version = key.rpartition("@")
    return records[name].versions[int(version)]


class Assignments:
    """What is wanted now, and what drains: a version that gateways could send requests to is held
    until all of them have learnt that they no longer can."""

    def __init__(self, incarnation: int) -> None:
        """`incarnation` counts the controller's starts: revisions grow over all of them."""
        self.revision = (incarnation << 32) + 1
        self._wanted: dict[str, Wanted] = {}
        self._draining: dict[str, int] = {}

    def want(self, wanted: Mapping[str, Wanted]) -> None:
        """Replace what is wanted. The revision grows if that changes anything."""
        if wanted == self._wanted:
            return
        self.touch()
        for key, old in self._wanted.items():
            if key not in wanted and is_routable(old.role, old.trial):
                self._draining[key] = self.revision
        self._wanted = dict(wanted)
        for key in wanted:
            self._draining.pop(key, None)

    def drain(self, key: str) -> None:
        """Hold a version that an earlier controller took out of use and may not have seen out."""
        if key not in self._wanted:
            self.touch()
            self._draining[key] = self.revision

    def seen_by_gateways(self, revision: int) -> None:
        """Every gateway has applied `revision`: what had begun to drain by then can go."""
        gone = [key for key, since in self._draining.items() if since <= revision]
        for key in gone:
            del self._draining[key]
        if gone:
            self.touch()

    def touch(self) -> None:
        """Something that participants should hear of has changed."""
        self.revision += 1

    def __contains__(self, key: str) -> bool:
        return key in self._wanted or key in self._draining

    def __iter__(self) -> Iterator[tuple[str, Wanted]]:
        yield from self._wanted.items()
        for key in self._draining:
            yield key, Wanted("draining")

    def role(self, key: str) -> Role | None:
        """What a version is held for; None if it is not."""
        if key in self._wanted:
            return self._wanted[key].role
        return "draining" if key in self._draining else None
