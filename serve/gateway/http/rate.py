"""The rate limit: how many requests each caller may send."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

CALLERS = 10_000
"""The most callers that are remembered. The one that was quiet for longest is forgotten first."""


@dataclass
class _Bucket:
    left: float
    at: float


class RateLimit:
    """A token bucket for each caller. It holds one minute's requests and refills at an even pace."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = monotonic) -> None:
        """`per_minute`: requests per minute of one caller; None for no limit."""
        self._size = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Take one request from the caller's bucket. Return 0, or the seconds to wait if the bucket is empty."""
        if self._size is None:
            return 0
        now, pace = self._clock(), self._size / 60
        bucket = self._buckets.setdefault(caller, _Bucket(self._size, now))
        self._buckets.move_to_end(caller)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        bucket.left = min(self._size, bucket.left + (now - bucket.at) * pace)
        bucket.at = now
        if bucket.left < 1:
            return (1 - bucket.left) / pace
        bucket.left -= 1
        return 0
