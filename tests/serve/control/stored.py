"""The database of the protocol's model. It compares writes by the same rules as the real one."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from serve.control.database.comparison import (
    check_advance,
    check_begin,
    check_commit,
    check_incarnation,
)
from serve.control.records import EnsembleRecord, VersionRecord
from serve.control.rollout.state import BUSY, Rollout


@dataclass
class Stored:
    """One ensemble, its rollouts, and the incarnation of the server that may write."""

    record: EnsembleRecord
    rollouts: dict[str, Rollout]
    committed: Counter[int]
    """Version -> how often it was committed."""
    incarnation: int = 0
    epoch: int = 0

    def begin(self, incarnation: int, rollout: Rollout, candidate: VersionRecord | None) -> None:
        check_incarnation(incarnation, self.incarnation)
        busy = [each.id for each in self.rollouts.values() if each.state in BUSY]
        check_begin(rollout, self.record.active, busy)
        if candidate is not None:
            number = candidate.ensemble.version
            assert number not in self.record.versions, "one content for ever"
            self.record = self.record.with_version(candidate)
        self.rollouts[rollout.id] = copy(rollout)

    def commit(
        self, incarnation: int, rollout: Rollout, record: EnsembleRecord, history: tuple[int, ...]
    ) -> int:
        check_incarnation(incarnation, self.incarnation)
        check_commit(rollout, record, self.record.active, self.record.epoch)
        check_advance(self.rollouts[rollout.id].state, rollout.state)
        self.epoch += 1
        self.record = self.record.committed(rollout.to_version, self.epoch, history)
        self.rollouts[rollout.id] = copy(rollout)
        self.committed[rollout.to_version] += 1
        return self.epoch

    def advanced(self, incarnation: int, rollout: Rollout) -> None:
        check_incarnation(incarnation, self.incarnation)
        check_advance(self.rollouts[rollout.id].state, rollout.state)
        known = self.rollouts[rollout.id]
        decided = {"decision": known.decision, "decided_by": known.decided_by}
        self.rollouts[rollout.id] = replace(copy(rollout), **decided)  # type: ignore[arg-type]

    def decided(self, incarnation: int, rollout: Rollout) -> None:
        check_incarnation(incarnation, self.incarnation)
        known = self.rollouts[rollout.id]
        check_advance(known.state, rollout.state)
        known.decision, known.decided_by = rollout.decision, rollout.decided_by

    def image(self) -> object:
        """A copy of all that is stored."""
        rollouts = {id: copy(rollout) for id, rollout in self.rollouts.items()}
        return self.record, rollouts, self.incarnation, self.epoch


@dataclass
class Doubt:
    """A transaction whose connection broke at the commit: it will be carried out, or not."""

    carry_out: Callable[[], object]
    learn: Callable[[bool], None]
    """What the server does once it knows the outcome."""


def copy(rollout: Rollout) -> Rollout:
    return replace(rollout, figures=dict(rollout.figures))
