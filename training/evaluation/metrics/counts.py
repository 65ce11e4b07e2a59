"""Precision, recall and F1 from counts of right, said and true labels (van Rijsbergen 1979)."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from training.evaluation.metrics.resampling import Floats, Metric, ratio

Average = Literal["macro", "micro", "weighted"]
CountedMetric = Literal["precision", "recall", "f1"]
AVERAGES: tuple[Average, ...] = get_args(Average)
KINDS: tuple[CountedMetric, ...] = get_args(CountedMetric)


class LabelCounts:
    """How often each label was said rightly, said, and true, on any resample of the rows."""

    def __init__(self, said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Both [N, C]: which labels each row was given, and which it has.

        Labels that are neither said nor true are left out, as scikit-learn leaves them out.
        """
        present = (said | truth).any(axis=0)
        said, truth = said[:, present], truth[:, present]
        self._labels = said.shape[1]
        columns = np.concatenate([said & truth, said, truth], axis=1)
        self._columns = csr_array(columns, dtype=np.float64)
        self._last: tuple[Floats, Floats] | None = None

    def metric(self, kind: CountedMetric, average: Average) -> Metric:
        """Precision, recall or F1: `macro` is the mean over labels, `weighted` their mean by true rows, `micro` one
        figure over all."""
        measure = _MEASURES[kind]

        def metric(times: Floats) -> Floats:
            right, said, true = self._sums(times)
            if average == "micro":
                return measure(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1))
            scores = measure(right, said, true)
            if average == "weighted":
                return ratio((scores * true).sum(axis=1), true.sum(axis=1))
            # On a resample, a label that nothing has and nothing says is absent.
            return ratio(scores.sum(axis=1), ((said + true) > 0).sum(axis=1).astype(np.float64))

        return metric

    def _sums(self, times: Floats) -> tuple[Floats, Floats, Floats]:
        """Rightly said, said and true [S, C]; the last resamples' are kept, since nine metrics ask for the same."""
        if self._last is None or self._last[0] is not times:
            sums: Floats = np.asarray(self._columns.T @ times.T).T
            self._last = times, sums
        sums, labels = self._last[1], self._labels
        return sums[:, :labels], sums[:, labels : 2 * labels], sums[:, 2 * labels :]


def _precision(right: Floats, said: Floats, true: Floats) -> Floats:
    return ratio(right, said)


def _recall(right: Floats, said: Floats, true: Floats) -> Floats:
    return ratio(right, true)


def _f1(right: Floats, said: Floats, true: Floats) -> Floats:
    return ratio(2 * right, said + true)


_MEASURES: dict[CountedMetric, Callable[[Floats, Floats, Floats], Floats]] = {
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
}
