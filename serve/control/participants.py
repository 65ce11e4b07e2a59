"""The engines and gateways that hold a lease: their ordinals and their last reports."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve.protocol.messages import ParticipantKind, StatusReport


@dataclass
class Participant:
    """One live engine or gateway."""

    ordinal: int
    report: StatusReport
    heard: float
    """When it last reported, in seconds of the controller's clock."""

    @property
    def name(self) -> str:
        """The name that people see: `kind/ordinal`."""
        return f"{self.report.kind}/{self.ordinal}"


class Participants:
    """All leases. Times are seconds of one monotonic clock."""

    def __init__(self, lease_seconds: float, expected: Mapping[ParticipantKind, int]) -> None:
        """`expected`: the number of replicas of each kind that are meant to run. Up to that number, a new process takes
        over the ordinal of a silent one instead of getting its own."""
        self._lease = lease_seconds
        self._expected = expected
        self._all: dict[str, Participant] = {}

    def hear(self, report: StatusReport, now: float) -> Participant | None:
        """Renew the lease of the process that reports, and return it; None if it leaves. A report that arrives after a
        later one renews nothing."""
        known = self._all.get(report.participant)
        if report.leaving:
            self._all.pop(report.participant, None)
            return None
        if known is None:
            ordinal = self._free_ordinal(report.kind, now)
            known = self._all[report.participant] = Participant(ordinal, report, now)
        elif report.sequence > known.report.sequence:
            known.report, known.heard = report, now
        return known

    def expire(self, now: float) -> list[str]:
        """End the leases that have run out. Returns the ids of their participants."""
        gone = [name for name, each in self._all.items() if now >= each.heard + self._lease]
        for name in gone:
            del self._all[name]
        return gone

    def next_expiry(self) -> float | None:
        """When the next lease runs out unless it is renewed; None if there is no lease."""
        heard = [each.heard for each in self._all.values()]
        return min(heard) + self._lease if heard else None

    def get(self, participant: str) -> Participant | None:
        return self._all.get(participant)

    def live(self, kind: ParticipantKind | None = None) -> list[Participant]:
        """The participants of this kind (None: of all kinds), by kind and ordinal."""
        found = [each for each in self._all.values() if kind in (None, each.report.kind)]
        return sorted(found, key=lambda each: (each.report.kind, each.ordinal))

    def engines(self, pool: str) -> list[Participant]:
        """The engines of a pool, by ordinal."""
        return [each for each in self.live("engine") if each.report.pool == pool]

    def ready_engines(self, pool: str) -> int:
        return sum(each.report.ready for each in self.engines(pool))

    def seen_by_gateways(self) -> int | None:
        """The newest revision that all gateways have applied; None without gateways."""
        return min((each.report.seen_revision for each in self.live("gateway")), default=None)

    def _free_ordinal(self, kind: ParticipantKind, now: float) -> int:
        """The lowest free ordinal. If all expected ordinals are taken, a process has probably died and its lease still
        runs. The participant that has been silent for longest then gives up its ordinal and takes the free one, in case
        it still lives."""
        taken = {each.ordinal: each for each in self.live(kind)}
        free = next(ordinal for ordinal in range(len(taken) + 1) if ordinal not in taken)
        if free < self._expected.get(kind, 0):
            return free
        silent = [each for each in taken.values() if now - each.heard > self._lease / 2]
        if not silent:
            return free
        longest = min(silent, key=lambda each: each.heard)
        ordinal, longest.ordinal = longest.ordinal, free
        return ordinal
