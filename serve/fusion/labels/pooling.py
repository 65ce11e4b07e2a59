"""Weighted averages of members' probabilities, or of their logarithms."""

import numpy as np

from serve.fusion.members import TINY, Floats
from serve.manifest import Space


def softmax(scores: Floats) -> Floats:
    """Returns exp(s) / sum exp(s) over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normalised: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return normalised


def logs(probabilities: Floats) -> Floats:
    """Returns natural logarithms. Of 0, it returns the logarithm of the smallest normal float64, so that all are
    finite."""
    nats: Floats = np.log(np.maximum(probabilities, TINY))
    return nats


CLIP = 1e-5
"""Log-odds count probabilities as at least this far from 0 and 1. Beyond it, float32 rounding would change them."""


def log_odds(probabilities: Floats) -> Floats:
    """Returns log p/(1-p) for p clipped to [1e-5, 1 - 1e-5]."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return odds


def sigmoid(scores: Floats) -> Floats:
    """Returns 1 / (1 + e^-x), without overflow."""
    probabilities: Floats = np.exp(-np.logaddexp(0.0, -scores))
    return probabilities


def mean(values: Floats, weights: Floats) -> Floats:
    """Returns the mean [...] of [M, ...] over the members, by weights [M] that sum to 1. Weights [M, N] are those of
    each row of [M, N, ...]."""
    rows = "n" if weights.ndim == 2 else ""
    weighted: Floats = np.einsum(f"m{rows},m{rows}...->{rows}...", weights, values)
    return weighted


def pool(probabilities: Floats, weights: Floats, space: Space = "probability") -> Floats:
    """Returns pooled probabilities [N, C] from [M, N, C] and weights [M] that sum to 1.

    `probability`: the linear opinion pool. `log`: the normalised weighted geometric mean, which is the logarithmic
    opinion pool (Genest and Zidek 1986)."""
    if space == "log":
        return softmax(mean(logs(probabilities), weights))
    return mean(probabilities, weights)


def pool_independent(
    probabilities: Floats, weights: Floats, space: Space = "probability"
) -> Floats:
    """Returns `pool` over the yes and no of each label by itself: [N, C] from [M, N, C] and weights [M]."""
    if space == "log":
        odds = logs(probabilities) - logs(1 - probabilities)
        return sigmoid(mean(odds, weights))
    return mean(probabilities, weights)


def uniform(members: int) -> Floats:
    """Returns the weight 1/M for each of M members, [M]."""
    return np.full(members, 1 / members)
