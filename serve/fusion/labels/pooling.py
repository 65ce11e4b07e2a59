"""Averages of member probabilities, plain and weighted, of probabilities or of their logarithms."""

import numpy as np

from serve.fusion.members import TINY, Floats
from serve.manifest import Space


def softmax(scores: Floats) -> Floats:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normalised: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return normalised


def logs(probabilities: Floats) -> Floats:
    """Natural logarithms, of 0 as of the smallest normal number."""
    nats: Floats = np.log(np.maximum(probabilities, TINY))
    return nats


CLIP = 1e-5
"""Probabilities nearer to 0 or 1 than this count as this in log-odds: beyond it, float32 rounding
would move them."""


def log_odds(probabilities: Floats) -> Floats:
    """log p/(1-p), of p clipped to [1e-5, 1 - 1e-5]."""
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return odds


def sigmoid(scores: Floats) -> Floats:
    """1 / (1 + e^-x), without overflow."""
    probabilities: Floats = np.exp(-np.logaddexp(0.0, -scores))
    return probabilities


def mean(values: Floats, weights: Floats) -> Floats:
    """[...] weighted mean of [M, ...] over the members, by weights [M] that sum to 1."""
    weighted: Floats = np.einsum("m,m...->...", weights, values)
    return weighted


def pool(probabilities: Floats, weights: Floats, space: Space = "probability") -> Floats:
    """[N, C] from [M, N, C] and weights [M] that sum to 1: the linear opinion pool, or for `log`
    the normalised weighted geometric mean (the logarithmic opinion pool; Genest and Zidek 1986)."""
    if space == "log":
        return softmax(mean(logs(probabilities), weights))
    return mean(probabilities, weights)


def pool_independent(
    probabilities: Floats, weights: Floats, space: Space = "probability"
) -> Floats:
    """[N, C] from [M, N, C] where each label is a yes or no of its own: `pool` over the two, a
    label."""
    if space == "log":
        odds = logs(probabilities) - logs(1 - probabilities)
        return sigmoid(mean(odds, weights))
    return mean(probabilities, weights)


def uniform(members: int) -> Floats:
    return np.full(members, 1 / members)
