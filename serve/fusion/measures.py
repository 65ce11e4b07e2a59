"""How sure an answer is, and how far members are apart. All in nats."""

import numpy as np

from serve.fusion.members import Floats, Ints
from serve.fusion.pooling import logs, mean


def entropy(probabilities: Floats) -> Floats:
    """H(p) = -sum p log p over the last axis; 0 where all the probability is on one label."""
    terms = probabilities * logs(probabilities)
    nats: Floats = np.maximum(-terms.sum(axis=-1), 0.0)
    return nats


def disagreement(probabilities: Floats, weights: Floats) -> Floats:
    """H(mean) - mean(H) [N] of members [M, N, C] under weights [M]: the mutual information between
    the answer and the member that gives it (a generalised Jensen-Shannon divergence; Lin 1991). 0
    if all members say the same."""
    gap = entropy(mean(probabilities, weights)) - mean(entropy(probabilities), weights)
    return np.maximum(gap, 0.0)


def log_loss(probabilities: Floats, targets: Ints) -> float:
    """Mean negative log-likelihood of the true labels [N] under [N, C]."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return -float(logs(chosen).mean())


def accuracy(probabilities: Floats, targets: Ints) -> float:
    """Share of rows whose most probable label is the true one."""
    return float((probabilities.argmax(axis=1) == targets).mean())
