"""BLEU of written answers, with bootstrap intervals and paired differences (Papineni et al. 2002; Koehn 2004)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

SAMPLES = 1000
"""Bootstrap resamples of the answers."""
COVERED = 95.0
"""Per cent of the resamples that an interval covers."""


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95% of its bootstrap distribution."""

    value: float
    low: float
    high: float


class Bleu:
    """Corpus BLEU (sacrebleu's, 0 to 100) of several systems that answered the same inputs."""

    def __init__(
        self, systems: Sequence[Sequence[str]], references: Sequence[Sequence[str]], seed: int = 0
    ) -> None:
        """`systems` [S][N] answers; `references` [N] lists of at least one right answer each."""
        self._counts = np.stack([_counts(answers, references) for answers in systems])
        self.scores = [_bleu(counts.sum(axis=0)) for counts in self._counts]
        self._resampled = self._bootstrap(np.random.default_rng(seed))

    def interval(self, system: int) -> Interval:
        return _interval(self.scores[system], self._resampled[:, system])

    def difference(self, system: int, others: Sequence[int]) -> Interval:
        """What `system` has over the mean of `others`, paired: each resample judges all on the same inputs."""
        value = self.scores[system] - float(np.mean([self.scores[other] for other in others]))
        resampled = self._resampled[:, system] - self._resampled[:, list(others)].mean(axis=1)
        return _interval(value, resampled)

    def _bootstrap(self, random: np.random.Generator) -> Floats:
        """Scores [samples, S]."""
        rows = self._counts.shape[1]
        scores = np.empty((SAMPLES, len(self._counts)))
        for sample in range(SAMPLES):
            times = np.bincount(random.integers(rows, size=rows), minlength=rows)
            for system, counts in enumerate(self._counts):
                scores[sample, system] = _bleu(times @ counts)
        return scores


def _counts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Counts:
    """What BLEU sums over sentences, [N, 10]: matching n-grams and all n-grams for n = 1 to 4, length of answer and of
    the closest reference."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)
    scored = [
        metric.sentence_score(answer, list(right))
        for answer, right in zip(answers, references, strict=True)
    ]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scored], dtype=np.int64)


def _bleu(counts: Counts) -> float:
    from sacrebleu.metrics import BLEU

    correct, total = counts[:4].tolist(), counts[4:8].tolist()
    return float(
        BLEU.compute_bleu(correct, total, sys_len=int(counts[8]), ref_len=int(counts[9])).score
    )


def _interval(value: float, resampled: Floats) -> Interval:
    tail = (100 - COVERED) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
