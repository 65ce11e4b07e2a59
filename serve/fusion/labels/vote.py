"""Majority voting over labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import mean
from serve.fusion.members import Floats, Ints

TIE = 1e-9
"""Totals this near each other are equal: sums in another order must not decide."""


def vote(probabilities: Floats, weights: Floats, labels: Sequence[str]) -> tuple[Floats, Ints]:
    """Shares of the votes [N, C] and the winner's index [N] from probabilities [M, N, C] and
    weights [M] that sum to 1.

    Each member votes for its most probable label (the first of equals) with its weight. A tie goes
    to the highest unweighted sum of member probabilities, then to the label that sorts first."""
    votes = np.eye(probabilities.shape[2])[probabilities.argmax(axis=2)]
    shares = mean(votes, weights)
    best = _near_top(shares, np.ones(shares.shape, dtype=np.bool_))
    best = _near_top(probabilities.sum(axis=0), best)
    place = np.argsort(np.argsort(np.array(labels, dtype=object), kind="stable"))
    winners: Ints = np.where(best, place, len(labels)).argmin(axis=1)
    return shares, winners


def _near_top(totals: Floats, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where `among` holds and the total is the row's highest, or as good as that."""
    top = np.where(among, totals, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    near: NDArray[np.bool_] = among & (totals >= top - TIE)
    return near
