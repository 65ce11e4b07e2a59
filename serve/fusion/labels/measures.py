"""How sure an answer is, and how far members are apart. All in nats."""

import numpy as np
from numpy.typing import NDArray

from serve.fusion.labels.pooling import logs, mean
from serve.fusion.members import Floats, Ints


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


def binary(probabilities: Floats) -> Floats:
    """[..., C, 2] yes and no of each label from [..., C]."""
    return np.stack([probabilities, 1 - probabilities], axis=-1)


def label_log_loss(probabilities: Floats, targets: NDArray[np.bool_]) -> float:
    """Mean over the rows of the sum over the labels of -[y log p + (1-y) log(1-p)], from [N, C] and
    [N, C]: the negative log-likelihood of independent labels."""
    right = np.where(targets, probabilities, 1 - probabilities)
    return -float(logs(right).sum(axis=1).mean())


def micro_f1(chosen: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    """2 TP / (2 TP + FP + FN) over all rows and labels; 0 where nothing is chosen or true."""
    both = int((chosen & targets).sum())
    either = int(chosen.sum()) + int(targets.sum())
    return 2 * both / either if either else 0.0


def accuracy(probabilities: Floats, targets: Ints) -> float:
    """Share of rows whose most probable label is the true one."""
    return float((probabilities.argmax(axis=1) == targets).mean())
