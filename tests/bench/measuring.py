"""Medians and ratios, measured side by side so that a slow moment of the machine hits both sides."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

NOISE = 0.02
"""How far the figures of two runs may lie apart on a machine that other work shares."""

Call = Callable[[int], object]
"""One measured call; the argument counts up, so that no two calls need to be the same."""


def interleaved(calls: Mapping[str, Call], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Return the seconds of each call, round by round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(turn)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000


def p99_ms(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[98] * 1000


def rotated(sides: Sequence[str], turn: int) -> list[str]:
    """Return the sides in this turn's order: each comes first, second and last equally often."""
    first = turn % len(sides)
    return [*sides[first:], *sides[:first]]


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of calls that were made one after the other, so that a slow minute hits both."""
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def report(title: str, *lines: str) -> None:
    """Print a title and lines; `make bench` runs `pytest -s`, which shows them."""
    print(f"\n{title}", *(f"  {line}" for line in lines), sep="\n")
