"""Majority voting over labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import mean
from serve.fusion.members import Floats, Ints

TIE = 1e-9
"""Totals that differ by less than this are equal, so that the order of a sum does not decide."""


def vote(probabilities: Floats, weights: Floats, labels: Sequence[str]) -> tuple[Floats, Ints]:
    """Returns the shares of the votes [N, C] and the index of each winner [N], from probabilities [M, N, C] and weights
    [M] that sum to 1.

    Each member votes with its weight for its most probable label (the first of equals). A tie goes to the label with
    the highest unweighted sum of probabilities, then to the one that sorts first."""
    votes = np.eye(probabilities.shape[2])[probabilities.argmax(axis=2)]
    shares = mean(votes, weights)
    best = _near_top(shares, np.ones(shares.shape, dtype=np.bool_))
    best = _near_top(probabilities.sum(axis=0), best)
    place = np.argsort(np.argsort(np.array(labels, dtype=object), kind="stable"))
    winners: Ints = np.where(best, place, len(labels)).argmin(axis=1)
    return shares, winners


def _near_top(totals: Floats, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns where `among` holds and the total is the row's highest, or within `TIE` of it."""
    top = np.where(among, totals, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    near: NDArray[np.bool_] = among & (totals >= top - TIE)
    return near
