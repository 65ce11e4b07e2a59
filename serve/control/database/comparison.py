"""What every write is compared with first, so that nothing that comes late or twice takes a step back."""

from collections.abc import Collection, Mapping

from serve.control.database.connection import DatabaseError
from serve.control.records import EnsembleRecord
from serve.control.rollout.state import TRANSITIONS, Rollout, State


class Conflict(DatabaseError):
    """Somebody else changed the state first."""


class TakenOver(Conflict):
    """A later server has this state now; this one can change nothing any more."""


def check_life(own: int, current: int) -> None:
    """Raises TakenOver unless nobody has begun an incarnation after `own`."""
    if own != current:
        raise TakenOver(
            "Another Choir server has taken this store over; stop one of the two, or give each its own --store."
        )


def check_begin(rollout: Rollout, active: int, busy: Collection[str]) -> None:
    """Raises Conflict unless the rollout starts from what is active, and no other one of its ensemble is `busy`."""
    _check_active(rollout, active)
    if busy:
        raise Conflict(
            f"The rollout {min(busy)} of {rollout.ensemble} has not ended yet; wait until it has, and start again."
        )


def check_advance(known: State, to: State) -> None:
    """Raises Conflict for a step back: what has ended stays ended, and what is committed is never aborted."""
    if to != known and to not in AFTER[known]:
        raise Conflict(f"A rollout that is {known} cannot become {to} any more.")


def check_commit(rollout: Rollout, record: EnsembleRecord, active: int, epoch: int) -> None:
    """Raises Conflict unless what the rollout started from is active, and still by the commit that `record` knows."""
    _check_active(rollout, active)
    if (record.active, record.epoch) != (active, epoch):
        raise _moved(rollout.ensemble, record.active)


def _check_active(rollout: Rollout, active: int) -> None:
    if rollout.from_version != active:
        raise _moved(rollout.ensemble, rollout.from_version)


def _moved(name: str, version: int) -> Conflict:
    return Conflict(
        f"{name} is not at version {version} any more; look at its active version and start again."
    )


def _after(state: State) -> frozenset[State]:
    return TRANSITIONS[state].union(*map(_after, TRANSITIONS[state]))


AFTER: Mapping[State, frozenset[State]] = {state: _after(state) for state in State}
"""State -> all that may come after it, at once or later."""
