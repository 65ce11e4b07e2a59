"""The axes of a chart: their range, their ticks, and where a value lies on them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

TICKS = 6
"""About how many ticks an axis has."""
SAME = 1e-6
"""Values that differ by no more than this, relative to the largest above 1, are drawn as one: as losses near 0 are."""


@dataclass(frozen=True)
class Axis:
    """One axis, linear or logarithmic."""

    label: str
    low: float
    high: float
    ticks: list[float]
    log: bool = False

    @classmethod
    def over(
        cls, label: str, values: Iterable[float], *, zero: bool = False, whole: bool = False
    ) -> Self:
        """Make a linear axis that holds all `values`: with `zero` from 0 on, with `whole` only with whole ticks."""
        found = [*values, *([0.0] if zero else [])] or [0.0, 1.0]
        low, high = min(found), max(found)
        if high - low <= SAME * max(1.0, abs(high)):
            room = max(abs(high) * 0.05, 1.0 if whole else 0.005)
            low, high = (low if zero else low - room), high + room
        step = _nice((high - low) / (TICKS - 1))
        step = max(1.0, step) if whole else step
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = [round(step * number, 10) for number in range(first, last + 1)]
        return cls(label, ticks[0], ticks[-1], ticks)

    @classmethod
    def costs(cls, label: str, values: Iterable[float]) -> Self:
        """Make an axis for costs above 0: logarithmic if they differ by more than four times, else linear from 0."""
        found = [*values]
        low, high = min(found), max(found)
        if low <= 0 or high <= 4 * low:
            return cls.over(label, [*found, high * 1.05], zero=True)
        ticks = [
            part * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for part in (1, 2, 5)
        ]
        below = max(tick for tick in ticks if tick <= low)
        above = min(tick for tick in ticks if tick >= high)
        return cls(label, below, above, [t for t in ticks if below <= t <= above], log=True)

    def share(self, value: float) -> float:
        """Return where a value lies between the ends of the axis, 0 to 1. Values outside lie at the nearest end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def text(self, tick: float) -> str:
        """Return a tick as text, with as many decimals as the ticks need to differ."""
        return f"{tick:.{self._decimals}f}"

    @property
    def _decimals(self) -> int:
        for decimals in range(6):
            if all(math.isclose(round(tick, decimals), tick, abs_tol=1e-9) for tick in self.ticks):
                return decimals
        return 6


def _nice(step: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= step * (1 - 1e-9))
