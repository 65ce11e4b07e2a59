"""Expected calibration error with bins of equal mass (Naeini et al. 2015; Nguyen and O'Connor 2015)."""

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics.resampling import Floats, Metric

BINS = 15


def calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> Metric:
    """Return the metric: the mean gap between confidence [N] and accuracy over 15 bins of equal size.

    Rows are sorted by confidence, and equal ones by their place. If 15 does not divide their number, the first bins
    have one row more.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = confidence[order] - right[order]

    def metric(times: Floats) -> Floats:
        values = np.empty(len(times))
        for sample, counts in enumerate(times[:, order]):
            # Copies of a row are neighbours in the sorted resample, so sums between two places are differences of a
            # piecewise linear function.
            places = np.concatenate([[0.0], np.cumsum(counts)])
            summed = np.concatenate([[0.0], np.cumsum(counts * gaps)])
            at_bounds = np.interp(_bounds(round(places[-1])), places, summed)
            values[sample] = np.abs(np.diff(at_bounds)).sum() / places[-1]
        return values

    return metric


def _bounds(rows: int) -> NDArray[np.int64]:
    """Return the bounds of the bins [16], as numpy's `array_split` divides `rows` into 15."""
    sizes = np.full(BINS, rows // BINS)
    sizes[: rows % BINS] += 1
    return np.concatenate([[0], np.cumsum(sizes)])
