"""Metrics of regression: RMSE, MAE, R², and the correlations of Pearson and Spearman."""

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics.resampling import Floats, Metric, mean_over_rows, ratio


def regression_metrics(values: Floats, truth: Floats) -> dict[str, Metric]:
    """Return the metrics of predicted `values` [N] against `truth` [N].

    A correlation with constant values, and R² of a constant truth, are undefined and reported as 0.
    """
    errors = values - truth
    squared = mean_over_rows(errors**2)
    return {
        "rmse": lambda times: np.sqrt(squared(times)),
        "mae": mean_over_rows(np.abs(errors)),
        "r2": lambda times: _determination(squared(times), truth, times),
        "pearson": lambda times: _pearson(values, truth, times),
        "spearman": _spearman(values, truth),
    }


def _determination(squared: Floats, truth: Floats, times: Floats) -> Floats:
    rows = times.sum(axis=1)
    # Centred on the overall mean, so that a resample's variance is not the difference of two large numbers.
    centred = truth - truth.mean()
    variance = times @ centred**2 / rows - (times @ centred / rows) ** 2
    return np.where(variance > 1e-12, 1 - ratio(squared, variance), 0.0)


def _pearson(x: Floats, y: Floats, times: Floats) -> Floats:
    """Return the correlation [S] of x and y, each [N] or [S, N]; `times` [S, N] says how often each row counts."""
    rows = times.sum(axis=1, keepdims=True)
    x = x - (times * x).sum(axis=1, keepdims=True) / rows
    y = y - (times * y).sum(axis=1, keepdims=True) / rows
    spread = np.sqrt((times * x * x).sum(axis=1) * (times * y * y).sum(axis=1))
    return ratio((times * x * y).sum(axis=1), spread)


def _spearman(values: Floats, truth: Floats) -> Metric:
    """Return Pearson's correlation of the ranks in each resample. Equal values share their mean rank."""
    ranks_of_values, ranks_of_truth = _Ranks(values), _Ranks(truth)
    return lambda times: _pearson(ranks_of_values(times), ranks_of_truth(times), times)


class _Ranks:
    """Computes the ranks of the rows within each resample; equal values share their mean rank."""

    def __init__(self, values: Floats) -> None:
        distinct, self._group = np.unique(values, return_inverse=True)
        self._order: NDArray[np.int64] = np.argsort(values, kind="stable")
        self._starts = np.searchsorted(values[self._order], distinct)

    def __call__(self, times: Floats) -> Floats:
        """Return the ranks [S, N]. The rank of a row that is not in a resample is never used."""
        sizes = np.add.reduceat(times[:, self._order], self._starts, axis=1)
        ranks: Floats = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        return ranks[:, self._group]
