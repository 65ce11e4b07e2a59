"""Shares the engines between ensembles, and refuses requests before they would wait for long.

What an engine does at once is counted in member sequences: a request to an ensemble of three members is three. A
gateway starts no more than the engines have places for. A few more wait here, and all others are refused at once, with
the time after which to ask again. So vLLM's own queue, which knows no ensembles, stays short."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from serve import metrics
from serve.errors import Refusal, RefusedError

LARGEST = 0.25
"""The largest share of the places that one request of many inputs counts for. The engine shares its own queue between
requests, so a large one takes its time and not the others' places."""
WINDOW_SECONDS = 10.0
"""The time over which the rate of sequences that end is measured."""
LONGEST_SECONDS = 60
"""The longest time that a refused client is told to wait."""


@dataclass
class _Line:
    """The requests for one ensemble."""

    ensemble: str
    share: float
    running: int = 0
    """Sequences in the engines."""
    turn: int = 0
    """The number of its last turn: of equals, the one is next whose last turn is longest ago."""
    waiting: "deque[Place]" = field(default_factory=deque)

    @property
    def queued(self) -> int:
        """Sequences that wait."""
        return sum(each.size for each in self.waiting)

    def show(self) -> None:
        metrics.sequences(self.ensemble, self.running, self.queued)


class Places:
    """The places of one gateway in the engines.

    A free place goes to the ensemble that has the fewest sequences running for its share. So an ensemble that is asked
    little waits for the end of one other request, however many the others send, and one request of it may always
    wait."""

    def __init__(
        self,
        total: Callable[[], int],
        queue: float,
        shares: Mapping[str, float],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`total`: how many sequences may run now, at least 1. `queue`: how many may wait, as a share of that.
        `shares`: of each ensemble, 1 if it is not named."""
        self.total = total
        self._queue = queue
        self._shares = shares
        self._rate = _Rate(clock)
        self._running = 0
        self._turns = 0
        self._lines: dict[str, _Line] = {}

    def take(self, ensemble: str, members: int, answers: int) -> "Place":
        """Return the place of a request that asks each of `members` for `answers`. It may have to wait for its turn.

        Raises RefusedError (429) if too many wait already."""
        total = self.total()
        size = min(members * answers, max(members, int(LARGEST * total)), total)
        line = self._lines.get(ensemble) or _Line(ensemble, self._shares.get(ensemble, 1.0))
        others_wait = any(each.waiting for each in self._lines.values())
        if others_wait or self._running + size > total:
            self._check_room(line, size, total)
        self._lines[ensemble] = line
        place = Place(self, line, size)
        line.waiting.append(place)
        line.show()
        self._advance()
        return place

    def _check_room(self, line: _Line, size: int, total: int) -> None:
        """Raise RefusedError if the line is full: it has its share of the queue, and one request at least."""
        busy = sum(each.share for each in self._lines.values() if each is not line)
        room = self._queue * total * line.share / (busy + line.share)
        if not line.waiting or line.queued + size <= room:
            return
        queued = sum(each.queued for each in self._lines.values())
        seconds = min(max(1, math.ceil(self._rate.seconds_for(queued))), LONGEST_SECONDS)
        full = Refusal(
            429,
            f"The engines are busy, and {len(line.waiting)} other requests already wait for {line.ensemble}; ask again "
            f"in {seconds} seconds.",
            "queue_full",
        )
        metrics.request_refused("queue_full")
        raise RefusedError.of(full, {"retry-after": str(seconds)})

    def _advance(self) -> None:
        """Start requests in turn, until the next one needs more places than are free."""
        while waiting := [line for line in self._lines.values() if line.waiting]:
            line = min(waiting, key=lambda each: (each.running / each.share, each.turn))
            size = line.waiting[0].size
            # A request that came while there were more engines may need more than all.
            if self._running + size > self.total() and self._running:
                return
            self._turns += 1
            line.turn = self._turns
            line.running += size
            self._running += size
            line.waiting.popleft().start()
            line.show()

    def leave(self, line: _Line, place: "Place") -> None:
        """Take a request out, whether it runs or waits, and start who is next."""
        if place.runs:
            line.running -= place.size
            self._running -= place.size
            self._rate.ended(place.size)
        else:
            line.waiting.remove(place)
        if not line.running and not line.waiting:
            del self._lines[line.ensemble]
        line.show()
        self._advance()


class EnginePlaces:
    """The places of one gateway in each pool of engines."""

    def __init__(
        self, total: Callable[[str], int], queue: float, shares: Mapping[str, float]
    ) -> None:
        """`total`: how many sequences may run now in a pool; the rest as in `Places`."""
        self._total = total
        self._queue = queue
        self._shares = shares
        self._pools: dict[str, Places] = {}

    def of(self, pool: str) -> Places:
        """Return the places in one pool."""
        if pool not in self._pools:
            total = partial(self._total, pool)
            self._pools[pool] = Places(total, self._queue, self._shares)
        return self._pools[pool]


class Place:
    """The place of one request, or its place in the queue."""

    def __init__(self, places: Places, line: _Line, size: int) -> None:
        self.size = size
        self.runs = False
        """Whether the request may go to an engine."""
        self._places = places
        self._line = line
        self._started = asyncio.Event()

    def start(self) -> None:
        self.runs = True
        self._started.set()

    async def turn(self) -> None:
        """Return when it is this request's turn."""
        await self._started.wait()

    def leave(self) -> None:
        """Give the place back. Call it once, also for a request that never ran."""
        self._places.leave(self._line, self)


class _Rate:
    """How many sequences end in a second, over the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, int]] = deque()
        self._sum = 0

    def ended(self, size: int) -> None:
        self._ended.append((self._clock(), size))
        self._sum += size
        self._forget()

    def seconds_for(self, size: int) -> float:
        """Return after how many seconds that many sequences will have ended; 0 while nothing is known."""
        self._forget()
        if not self._ended:
            return 0
        return size * max(self._clock() - self._ended[0][0], 1.0) / self._sum

    def _forget(self) -> None:
        while self._ended and self._ended[0][0] < self._clock() - WINDOW_SECONDS:
            self._sum -= self._ended.popleft()[1]
