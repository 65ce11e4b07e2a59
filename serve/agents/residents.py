"""Who is loaded of the versions that share an engine's room by turns: who waits for it, and who makes it.

Only numbers and names: loading and unloading is the engine agent's."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from serve.refusal import Refusal

TURN_SECONDS = 2.0
"""How long a version that is asked all the time may go on while another one waits for its room."""
IDLE_SECONDS = 0.1
"""How long a version has to be without requests to leave within its turn: clients that ask one after the other leave
short gaps, and each would cost a load."""
RETRY_SECONDS = 10.0
"""After which a version that could not be loaded is tried again for the next request."""


@dataclass
class Demand:
    """Requests wait until a version is loaded."""

    since: float = field(default_factory=monotonic)
    """On the monotonic clock."""
    answer: asyncio.Future[Refusal | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Why it cannot be loaded; None once it is."""

    @property
    def overdue(self) -> bool:
        """Whether those that are asked all the time have to make room now."""
        return monotonic() >= self.since + TURN_SECONDS


class Residents:
    """Demands in their order, and who was used when."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}
        self._failed: dict[str, tuple[float, Refusal]] = {}
        self._users: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._loaded: dict[str, float] = {}

    def enter(self, key: str) -> None:
        """A request has come, and may have to wait: it keeps the version from being put out as idle from now on."""
        self._users[key] += 1

    def leave(self, key: str) -> bool:
        """That request has ended. Whether somebody could have the room of its version now. With the last one goes its
        demand: nobody is there for whom to load the version."""
        self._used[key] = monotonic()
        self._users[key] -= 1
        if self._users[key]:
            return False
        del self._users[key]
        self.answered(key, None)
        return bool(self._demands)

    def busy(self, key: str) -> bool:
        """Whether the version has requests."""
        return self._users[key] > 0

    def demand(self, key: str) -> asyncio.Future[Refusal | None]:
        """Ask for a version to be loaded, after those that were asked for before."""
        failure = self.failure(key)
        if failure is not None:
            known: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
            known.set_result(failure)
            return known
        return self._demands.setdefault(key, Demand()).answer

    def demands(self) -> list[tuple[str, Demand]]:
        """Who waits, the longest first."""
        return list(self._demands.items())

    def answered(self, key: str, refusal: Refusal | None) -> None:
        """Whoever waits for the version need not any longer."""
        demand = self._demands.pop(key, None)
        if demand is not None and not demand.answer.done():
            demand.answer.set_result(refusal)

    def loaded(self, key: str) -> None:
        """The version is loaded: its turn begins."""
        self._loaded[key] = monotonic()
        self._failed.pop(key, None)
        self.answered(key, None)

    def failed(self, key: str, reason: str) -> None:
        """The version cannot be loaded, and is not tried again for a while."""
        refusal = Refusal(503, f"{key} cannot be loaded: {reason}", "load_failed")
        self._failed[key] = monotonic() + RETRY_SECONDS, refusal
        self.answered(key, refusal)

    def failure(self, key: str) -> Refusal | None:
        """Why the version could not be loaded a short time ago."""
        until, refusal = self._failed.get(key, (0.0, None))
        return refusal if monotonic() < until else None

    def forget(self, known: Collection[str]) -> None:
        """Keep what belongs to `known` versions only. Whoever waits for another one is told to look again."""
        for key in [key for key in self._demands if key not in known]:
            self.answered(key, None)
        for book in (self._failed, self._used, self._loaded):
            for key in [key for key in book if key not in known]:
                del book[key]

    def evictable(self, versions: Collection[str], *, busy_too: bool) -> list[str]:
        """Who of the `versions` may leave, in the order in which they should: those without requests, the one that was
        used longest ago first, then, with `busy_too`, those that are asked all the time and have had their turn."""
        now = monotonic()
        last = {key: max(self._used.get(key, 0.0), self._loaded.get(key, 0.0)) for key in versions}

        def may_leave(key: str) -> bool:
            if self._loaded.get(key, 0.0) <= now - TURN_SECONDS:
                return busy_too or not self.busy(key)
            return not self.busy(key) and last[key] <= now - IDLE_SECONDS

        return sorted(filter(may_leave, versions), key=lambda key: (self.busy(key), last[key]))


def victims(
    needed: Collection[str],
    held: Mapping[str, Collection[str]],
    evictable: Sequence[str],
    capacity: int,
) -> list[str]:
    """Who leaves, the first of `evictable` before the others, so that the LoRAs `needed` fit beside what else is `held`
    (version -> its LoRAs). Nobody if that is not enough."""
    leaving: list[str] = []
    for key in evictable:
        if fits(needed, held, leaving, capacity):
            break
        leaving.append(key)
    if not fits(needed, held, leaving, capacity):
        return []
    for key in list(leaving):  # what it shares with others may have made its leaving useless
        rest = [each for each in leaving if each != key]
        if fits(needed, held, rest, capacity):
            leaving = rest
    return leaving


def fits(
    needed: Collection[str],
    held: Mapping[str, Collection[str]],
    leaving: Collection[str],
    capacity: int,
) -> bool:
    """Whether the LoRAs `needed` have room beside those of `held` that are not `leaving`."""
    staying = (loras for key, loras in held.items() if key not in leaving)
    return len(set(needed).union(*staying)) <= capacity
