"""Bootstrap intervals and paired tests of any metric (Efron and Tibshirani 1993; Koehn 2004)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Metric = Callable[[Floats], Floats]
"""A metric of fixed rows. It gets how often each of S resamples has each row [S, N], and returns its value on each
resample [S]. With all ones, it returns the figure itself.

A metric that is made of sums or means over rows needs one matrix product for all resamples.
"""

SAMPLES = 1000
"""Bootstrap resamples of the rows."""
COVERED = 95.0
"""Percentage of the resamples that an interval covers."""
CHUNK_CELLS = 4_000_000
"""Cells in one block of resamples, so that a block takes about 32 MB whatever the number of rows."""


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95% of its bootstrap distribution."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap(Interval):
    """The difference between one system and others, and its p-value."""

    p: float


class Comparison:
    """The metrics of several systems that answered the same rows. Each resample has the same rows for all systems."""

    def __init__(
        self,
        systems: Sequence[Mapping[str, Metric]],
        rows: int,
        *,
        seed: int = 0,
        samples: int = SAMPLES,
    ) -> None:
        """`systems` are the metrics of each system by name. Systems can be compared by a metric that both have."""
        self._seed, self._samples, self._rows = seed, samples, rows
        whole = np.ones((1, rows))
        self.scores = [
            {name: float(metric(whole)[0]) for name, metric in metrics.items()}
            for metrics in systems
        ]
        self._resampled = self._bootstrap(systems)

    def interval(self, system: int, metric: str) -> Interval:
        return Interval(self.scores[system][metric], *_middle(self._resampled[system][metric]))

    def gap(self, metric: str, system: int, others: Sequence[int]) -> Gap:
        """Return the difference between `system` and the mean of `others`, with a two-sided p-value by the paired
        bootstrap, as sacrebleu computes it."""
        value = self.scores[system][metric] - float(
            np.mean([self.scores[other][metric] for other in others])
        )
        resampled = self._resampled[system][metric] - np.mean(
            [self._resampled[other][metric] for other in others], axis=0
        )
        # Under the null hypothesis, the resampled differences have the same spread and a mean of zero.
        beyond = np.abs(resampled - resampled.mean()) >= abs(value) - 1e-12
        p = (int(beyond.sum()) + 1) / (len(resampled) + 1)
        return Gap(value, *_middle(resampled), p)

    def _bootstrap(self, systems: Sequence[Mapping[str, Metric]]) -> list[dict[str, Floats]]:
        """Return the metrics on every resample: [systems], each from name to values [samples]."""
        found: list[dict[str, list[Floats]]] = [{name: [] for name in s} for s in systems]
        for times in self._resamples():
            for metrics, values in zip(systems, found, strict=True):
                for name, metric in metrics.items():
                    values[name].append(metric(times))
        return [{name: np.concatenate(parts) for name, parts in values.items()} for values in found]

    def _resamples(self) -> Iterator[Floats]:
        """Yield blocks [s, N] of how often each resample has each row."""
        random = np.random.default_rng(self._seed)
        block = max(1, CHUNK_CELLS // self._rows)
        for start in range(0, self._samples, block):
            size = min(block, self._samples - start)
            drawn = random.integers(self._rows, size=(size, self._rows))
            drawn += np.arange(size)[:, None] * self._rows
            counts = np.bincount(drawn.ravel(), minlength=size * self._rows)
            yield counts.reshape(size, self._rows).astype(np.float64)


def mean_over_rows(values: NDArray[np.floating | np.integer | np.bool_]) -> Metric:
    """Return the metric that is the mean of one value for each row [N]."""
    column = np.asarray(values, dtype=np.float64)
    return lambda times: times @ column / times.sum(axis=1)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise; the result is 0 where the denominator is 0 (scikit-learn's `zero_division=0`)."""
    return np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=np.abs(denominator) > 1e-12
    )


def _middle(resampled: Floats) -> tuple[float, float]:
    tail = (100 - COVERED) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)
