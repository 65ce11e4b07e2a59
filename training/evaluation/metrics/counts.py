"""Precision, recall and F1 from counts of correct, predicted and true labels (van Rijsbergen 1979)."""

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
    """Counts how often each label is correct, predicted and true, on any resample of the rows."""

    def __init__(self, said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """`said` [N, C] are the predicted labels of each row, `truth` [N, C] its true labels.

        Labels that are neither predicted nor true are left out, as in scikit-learn.
        """
        present = (said | truth).any(axis=0)
        said, truth = said[:, present], truth[:, present]
        self._labels = said.shape[1]
        columns = np.concatenate([said & truth, said, truth], axis=1)
        self._columns = csr_array(columns, dtype=np.float64)
        self._last: tuple[Floats, Floats] | None = None

    def metric(self, kind: CountedMetric, average: Average) -> Metric:
        """Return precision, recall or F1. `macro` is the mean over labels, `weighted` the mean weighted by true rows,
        and `micro` is over all labels together."""
        measure = _MEASURES[kind]

        def metric(times: Floats) -> Floats:
            right, said, true = self._sums(times)
            if average == "micro":
                return measure(right.sum(axis=1), said.sum(axis=1), true.sum(axis=1))
            scores = measure(right, said, true)
            if average == "weighted":
                return ratio((scores * true).sum(axis=1), true.sum(axis=1))
            # A label that is neither predicted nor true on a resample is left out there.
            return ratio(scores.sum(axis=1), ((said + true) > 0).sum(axis=1).astype(np.float64))

        return metric

    def _sums(self, times: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the counts of correct, predicted and true labels, each [S, C]. The last counts are cached, because
        nine metrics use the same."""
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
