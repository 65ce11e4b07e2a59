"""Compares each write with the database first, so that a late or repeated write cannot undo a later one."""

from collections.abc import Collection, Iterable, Mapping

from serve.control.database.connection import DatabaseError
from serve.control.records import EnsembleRecord
from serve.control.rollout.state import TRANSITIONS, Rollout, State


class Conflict(DatabaseError):
    """The state has changed since it was read."""


class TakenOver(Conflict):
    """Another server has taken over the database. This one can write nothing more."""


def check_incarnation(own: int, current: int) -> None:
    """Raises TakenOver if a later incarnation than `own` has begun."""
    if own != current:
        raise TakenOver(
            "Another Choir server has taken this store over; stop one of the two, or give each its own --store."
        )


def check_begin(rollout: Rollout, active: int, busy: Collection[str]) -> None:
    """Raises Conflict unless the rollout starts from the active version and no other rollout of its ensemble is
    `busy`."""
    _check_active(rollout, active)
    if busy:
        raise Conflict(
            f"The rollout {min(busy)} of {rollout.ensemble} has not ended yet; wait until it has, and start again."
        )


def check_advance(known: State, to: State) -> None:
    """Raises Conflict for a step back: no rollout that has ended goes on, and no committed one is aborted."""
    if to != known and to not in AFTER[known]:
        raise Conflict(f"A rollout that is {known} cannot become {to} any more.")


def check_commit(rollout: Rollout, record: EnsembleRecord, active: int, epoch: int) -> None:
    """Raises Conflict unless the rollout's first version is active, by the same commit as in `record`."""
    _check_active(rollout, active)
    if (record.active, record.epoch) != (active, epoch):
        raise _moved(rollout.ensemble, record.active)


def check_prune(
    name: str, gone: Collection[int], active: int, unfinished: Iterable[Rollout]
) -> None:
    """Raises Conflict if a version that is to be removed is active, or is part of a rollout."""
    needed = {active}
    for rollout in unfinished:
        needed |= {rollout.from_version, rollout.to_version}
    if found := needed & set(gone):
        raise Conflict(f"{name}@{min(found)} is in use now; look again at what can be removed.")


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
"""State -> all states that can follow, at once or later."""
