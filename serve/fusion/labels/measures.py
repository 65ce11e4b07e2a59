"""Measures of answers: how certain they are, how far members are apart, and how right they are. Entropies and losses
are in nats."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import logs, mean
from serve.fusion.members import Floats, Ints


def entropy(probabilities: Floats) -> Floats:
    """Returns H(p) = -sum p log p over the last axis, in nats; 0 where one label has all the probability."""
    terms = probabilities * logs(probabilities)
    nats: Floats = np.maximum(-terms.sum(axis=-1), 0.0)
    return nats


def disagreement(probabilities: Floats, weights: Floats) -> Floats:
    """Returns H(mean) - mean(H) [N], in nats, of members [M, N, C] under weights [M] that sum to 1.

    This is the mutual information between the answer and the member that gives it, a generalised Jensen-Shannon
    divergence (Lin 1991). It is 0 if all members say the same."""
    gap = entropy(mean(probabilities, weights)) - mean(entropy(probabilities), weights)
    return np.maximum(gap, 0.0)


def log_loss(probabilities: Floats, targets: Ints) -> float:
    """Returns the mean negative log-likelihood, in nats, of the true labels [N] under probabilities [N, C]."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return -float(logs(chosen).mean())


def binary(probabilities: Floats) -> Floats:
    """Returns the probabilities of yes and no [..., C, 2] for each label's probability [..., C]."""
    return np.stack([probabilities, 1 - probabilities], axis=-1)


def label_log_loss(probabilities: Floats, targets: NDArray[np.bool_]) -> float:
    """Returns the negative log-likelihood of independent labels, in nats, from probabilities [N, C] and targets [N, C]:
    the sum over the labels of -[y log p + (1-y) log(1-p)], averaged over the rows."""
    right = np.where(targets, probabilities, 1 - probabilities)
    return -float(logs(right).sum(axis=1).mean())


def micro_f1(chosen: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    """Returns 2 TP / (2 TP + FP + FN) over all rows and labels, from [N, C] and [N, C]; 0 where nothing is chosen and
    nothing is true."""
    both = int((chosen & targets).sum())
    either = int(chosen.sum()) + int(targets.sum())
    return 2 * both / either if either else 0.0


def accuracy(probabilities: Floats, targets: Ints) -> float:
    """Returns the share of rows of [N, C] whose most probable label is the true one [N]."""
    return float((probabilities.argmax(axis=1) == targets).mean())
