"""Who is loaded of the versions that share an engine's room by turns: who waits for it, and who makes it.

Only numbers and names: loading and unloading is the engine agent's."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from time import monotonic

from serve.engine.interface import Refusal

TURN_SECONDS = 2.0
"""How long a version that is asked all the time may go on while another one waits for its room."""
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
        """That request has ended. Whether somebody could have the room of its version now."""
        self._used[key] = monotonic()
        self._users[key] -= 1
        if self._users[key]:
            return False
        del self._users[key]
        return bool(self._demands)

    def demand(self, key: str) -> asyncio.Future[Refusal | None]:
        """Ask for a version to be loaded, after those that were asked for before."""
        failed = self._failed.get(key)
        if failed is not None and monotonic() < failed[0]:
            known: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
            known.set_result(failed[1])
            return known
        return self._demands.setdefault(key, Demand()).answer

    def next(self) -> tuple[str, Demand] | None:
        """Who has waited longest."""
        return next(iter(self._demands.items()), None)

    def answered(self, key: str, refusal: Refusal | None) -> None:
        """The version is loaded, or cannot be."""
        demand = self._demands.pop(key, None)
        if demand is not None and not demand.answer.done():
            demand.answer.set_result(refusal)
        self._failed.pop(key, None)
        if refusal is None:
            self._loaded[key] = monotonic()
        else:
            self._failed[key] = monotonic() + RETRY_SECONDS, refusal

    def forget(self, known: Collection[str]) -> None:
        """Keep what belongs to `known` versions only. Whoever waits for another one is told to look again."""
        for key in [key for key in self._demands if key not in known]:
            self.answered(key, None)
        for book in (self._failed, self._used, self._loaded):
            for key in [key for key in book if key not in known]:
                del book[key]

    def victims(
        self,
        needed: Collection[str],
        held: Mapping[str, Collection[str]],
        evictable: Collection[str],
        capacity: int,
        *,
        busy_too: bool,
    ) -> list[str]:
        """Who of `evictable` leaves so that the LoRAs `needed` fit beside what else is `held` (version -> its LoRAs):
        of those without requests the one that was used longest ago first, then, with `busy_too`, of those that have
        had their turn. Nobody if that is not enough."""
        begun = monotonic() - TURN_SECONDS
        candidates = [
            key
            for key in evictable
            if not self._users[key] or (busy_too and self._loaded.get(key, 0.0) <= begun)
        ]
        candidates.sort(key=lambda key: (self._users[key] > 0, self._used.get(key, 0.0)))
        leaving: list[str] = []
        for key in candidates:
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
