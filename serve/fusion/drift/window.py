"""The latest answers of an ensemble, beside the baseline of its validation rows."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.drift.baseline import Baseline, label_counts
from serve.fusion.drift.figures import AnswerFigures

WINDOW = 1000
"""How many of the latest answers count."""
LEAST = 200
"""With fewer answers there is no index: it would be large by chance."""


class Window:
    """A ring of the latest answers' bins. Not for several threads at once."""

    def __init__(self, baseline: Baseline, labels: tuple[str, ...], size: int = WINDOW) -> None:
        """`labels`: the ensemble's, in its order."""
        self._baseline = baseline
        self._kept = np.array(
            [labels.index(name) for name in baseline.labels.names], dtype=np.int64
        )
        self._agreement = np.zeros(size, dtype=np.int64)
        self._entropy = np.zeros(size, dtype=np.int64)
        self._labels = np.zeros((size, len(self._kept) + 1), dtype=np.int64)
        self._next = 0
        self._size = size
        self.answers = 0
        """How many answers the window has."""

    def add(self, figures: AnswerFigures) -> None:
        """Take the figures of further answers; the oldest ones leave."""
        latest = slice(-self._size, None)
        agreement = self._baseline.agreement.bins(figures.agreement[latest])
        places = (self._next + np.arange(len(agreement))) % self._size
        self._agreement[places] = agreement
        self._entropy[places] = self._baseline.entropy.bins(figures.entropy[latest])
        self._labels[places] = label_counts(figures.labels[latest], self._kept)
        self._next = int((self._next + len(places)) % self._size)
        self.answers = min(self._size, self.answers + len(places))

    def psi(self, least: int = LEAST) -> dict[str, float]:
        """Return the population stability index of each figure; none with fewer than `least` answers."""
        if self.answers < least:
            return {}
        return self._baseline.psi(
            {
                "agreement": self._counted(self._agreement, self._baseline.agreement.counts),
                "entropy": self._counted(self._entropy, self._baseline.entropy.counts),
                "labels": self._labels[: self.answers].sum(axis=0),
            }
        )

    def _counted(self, bins: NDArray[np.int64], expected: list[int]) -> NDArray[np.int64]:
        return np.bincount(bins[: self.answers], minlength=len(expected))
