"""Fits the thresholds of multilabel answers to fused validation probabilities."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.fusion.labels.multilabel import THRESHOLD
from serve.fusion.members import Floats, check_independent, check_target_sets


def common_threshold(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Returns the one threshold for all labels with the highest micro F1, from probabilities [N, C] and zeros and ones
    [N, C].

    It lies halfway between two probabilities. Of equals, it is the one nearest 0.5. Raises FusionError for unsound
    input."""
    pooled, truth = _checked(probabilities, targets)
    return _best(pooled.ravel(), truth.ravel())


def label_thresholds(probabilities: ArrayLike, targets: ArrayLike) -> Floats:
    """Returns a threshold for each label [C] with the label's highest F1; the common threshold for a label that no row
    has. Raises FusionError for unsound input."""
    pooled, truth = _checked(probabilities, targets)
    common = _best(pooled.ravel(), truth.ravel())
    return np.array(
        [
            _best(pooled[:, label], truth[:, label]) if truth[:, label].any() else common
            for label in range(pooled.shape[1])
        ]
    )


def _checked(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    (pooled,) = check_independent(np.asarray(probabilities)[None], ["the fused answer"])
    return pooled, check_target_sets(targets, *pooled.shape)


def _best(probabilities: Floats, truth: NDArray[np.bool_]) -> float:
    """Returns the threshold with the highest F1 for [K] probabilities and whether each is true."""
    if not truth.any():
        return THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    sorted_ = probabilities[order]
    right = np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + truth.sum())
    below = np.append(sorted_[1:], 0.0)
    f1[sorted_ == below] = -1.0
    cuts = (sorted_ + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(cuts[best[np.abs(cuts[best] - THRESHOLD).argmin()]])
