"""Member weights fitted on validation predictions."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.measures import accuracy, log_loss
from serve.fusion.members import Floats, Ints, check_probabilities, check_targets
from serve.fusion.pooling import pool, uniform
from serve.manifest import Space

Metric: TypeAlias = Literal["log_loss", "accuracy"]

_TIE = 1e-12


def greedy_weights(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    metric: Metric = "log_loss",
    rounds: int = 50,
    space: Space = "probability",
) -> Floats:
    """Weights [M] by greedy selection with replacement (Caruana et al. 2004).

    From validation predictions [M, N, C] and true label indices [N]: in each round the member joins
    whose addition gives the best pool, and a member's weight is its share of the picks up to the
    best round. Equals go to the first member and the earliest round, equal accuracies to the lower
    log loss first; so the result is deterministic. Raises FusionError for unsound input."""
    members, truth = _check(probabilities, targets)
    counts = np.zeros(len(members), dtype=np.int64)
    best_counts, best_loss = counts, (np.inf, np.inf)
    for _ in range(rounds):
        candidates = counts + np.eye(len(members), dtype=np.int64)
        losses = [_loss(pool(members, c / c.sum(), space), truth, metric) for c in candidates]
        pick = _first_best(losses)
        counts = candidates[pick]
        if _better(losses[pick], best_loss):
            best_counts, best_loss = counts, losses[pick]
    weights: Floats = best_counts / best_counts.sum()
    return weights


def accuracy_weights(probabilities: ArrayLike, targets: ArrayLike) -> Floats:
    """Weights [M] in proportion to each member's validation accuracy; equal ones if all are 0."""
    members, truth = _check(probabilities, targets)
    scores = np.array([accuracy(member, truth) for member in members])
    return scores / scores.sum() if scores.any() else uniform(len(scores))


_Loss: TypeAlias = tuple[float, float]


def _loss(pooled: Floats, truth: Ints, metric: Metric) -> _Loss:
    """What is minimised first, and what decides between equals."""
    nats = log_loss(pooled, truth)
    return (nats, 0.0) if metric == "log_loss" else (-accuracy(pooled, truth), nats)


def _better(one: _Loss, other: _Loss) -> bool:
    for mine, theirs in zip(one, other, strict=True):
        if abs(mine - theirs) > _TIE:
            return mine < theirs
    return False


def _first_best(losses: list[_Loss]) -> int:
    best = 0
    for index in range(1, len(losses)):
        if _better(losses[index], losses[best]):
            best = index
    return best


def _check(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, Ints]:
    names = [f"member {index}" for index in range(len(np.asarray(probabilities)))]
    members = check_probabilities(probabilities, names)
    return members, check_targets(targets, *members.shape[1:])
