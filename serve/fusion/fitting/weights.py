"""Fits member weights to validation predictions."""

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.labels.classification import ClassificationRules
from serve.fusion.labels.pooling import uniform
from serve.fusion.labels.rules import Criterion, Loss, Rules
from serve.fusion.members import Floats
from serve.manifest import Space

_TIE = 1e-12
_LABELS = ClassificationRules()


def greedy_weights(
    outputs: ArrayLike,
    targets: ArrayLike,
    *,
    rules: Rules = _LABELS,
    metric: Criterion | None = None,
    rounds: int = 50,
    space: Space = "probability",
) -> Floats:
    """Returns weights [M] by greedy selection with replacement (Caruana et al. 2004).

    Takes the members' validation outputs and the right answers in the form that `rules` checks. `metric` is one of the
    rules' criteria, by default the first. In each of `rounds` rounds, the member whose addition gives the best pool is
    picked. A member's weight is its share of the picks up to the best round. Of equals, the first member and the
    earliest round count; equal accuracies are decided by the log loss. So the result is deterministic. Raises
    FusionError for unsound input."""
    members = rules.check(outputs, _names(outputs))
    truth = rules.check_targets(targets, members)
    criterion = metric or rules.criteria[0]
    counts = np.zeros(len(members), dtype=np.int64)
    best_counts, best_loss = counts, (np.inf, np.inf)
    for _ in range(rounds):
        candidates = counts + np.eye(len(members), dtype=np.int64)
        losses = [
            rules.loss(rules.pool(members, c / c.sum(), space), truth, criterion)
            for c in candidates
        ]
        pick = _first_best(losses)
        counts = candidates[pick]
        if _better(losses[pick], best_loss):
            best_counts, best_loss = counts, losses[pick]
    weights: Floats = best_counts / best_counts.sum()
    return weights


def merit_weights(outputs: ArrayLike, targets: ArrayLike, *, rules: Rules = _LABELS) -> Floats:
    """Returns weights [M] in proportion to each member's validation accuracy (classification), micro F1 (multilabel) or
    inverse mean squared error (regression); equal weights if all are 0. Raises FusionError for unsound input."""
    members = rules.check(outputs, _names(outputs))
    truth = rules.check_targets(targets, members)
    merits = np.array([rules.merit(member, truth) for member in members])
    return merits / merits.sum() if merits.any() else uniform(len(merits))


def _better(one: Loss, other: Loss) -> bool:
    for mine, theirs in zip(one, other, strict=True):
        if abs(mine - theirs) > _TIE:
            return mine < theirs
    return False


def _first_best(losses: list[Loss]) -> int:
    best = 0
    for index in range(1, len(losses)):
        if _better(losses[index], losses[best]):
            best = index
    return best


def _names(outputs: ArrayLike) -> list[str]:
    return [f"member {index}" for index in range(len(np.asarray(outputs)))]
