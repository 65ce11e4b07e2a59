"""Expected calibration error with bins of equal mass (Naeini et al. 2015; Nguyen and O'Connor 2015)."""

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics.resampling import Floats, Metric

BINS = 15


def calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> Metric:
    """Mean gap between confidence [N] and accuracy over 15 bins of as equal a number of rows as possible.

    Rows are sorted by confidence, equal ones by their place; the first bins take one row more where 15 does not divide.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = confidence[order] - right[order]

    def metric(times: Floats) -> Floats:
        values = np.empty(len(times))
        for sample, counts in enumerate(times[:, order]):
            # A row that is drawn several times lies several times in a row: sums between two places in the sorted
            # resample are differences of a piecewise linear function.
            places = np.concatenate([[0.0], np.cumsum(counts)])
            summed = np.concatenate([[0.0], np.cumsum(counts * gaps)])
            at_bounds = np.interp(_bounds(round(places[-1])), places, summed)
            values[sample] = np.abs(np.diff(at_bounds)).sum() / places[-1]
        return values

    return metric


def _bounds(rows: int) -> NDArray[np.int64]:
    """Where bins begin and end [16]: `rows` over 15 bins as numpy's `array_split` does it."""
    sizes = np.full(BINS, rows // BINS)
    sizes[: rows % BINS] += 1
    return np.concatenate([[0], np.cumsum(sizes)])
