"""The population stability index: how far two distributions over the same bins are apart."""

import math

import numpy as np
from numpy.typing import ArrayLike

SMOOTHING = 0.5
"""What is added to every count, so that a bin that one side never saw does not make the index infinite."""


def population_stability_index(expected: ArrayLike, seen: ArrayLike) -> float:
    """Returns sum (q - p) ln (q / p) over the bins, where p and q are the shares of two lists of counts [K].

    It is 0 for equal shares. By custom, below 0.1 is no shift, and over 0.25 a significant one (Siddiqi 2006,
    Credit Risk Scorecards). Between samples of one distribution it is (K - 1) (1/N + 1/M) on average (Yurdakul 2018,
    Statistical Properties of Population Stability Index), so few answers need few bins."""
    p, q = _shares(expected), _shares(seen)
    return math.fsum((q - p) * np.log(q / p))


def _shares(counts: ArrayLike) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    smooth = np.asarray(counts, dtype=np.float64) + SMOOTHING
    return np.asarray(smooth / smooth.sum())
