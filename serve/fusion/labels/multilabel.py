"""The rules of multilabel: any number of labels for each row; each label is a yes or no of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.fusion.fused import FusedSets
from serve.fusion.labels.measures import binary, disagreement, entropy, label_log_loss, micro_f1
from serve.fusion.labels.pooling import log_odds, mean, pool_independent, sigmoid
from serve.fusion.labels.rules import Criterion, Loss, Rules
from serve.fusion.labels.vote import TIE
from serve.fusion.members import Floats, check_independent, check_target_sets
from serve.manifest import Space

THRESHOLD = 0.5


class MultilabelRules(Rules):
    criteria = ("log_loss", "micro_f1")

    def __init__(self, labels: Sequence[str], thresholds: Mapping[str, float]) -> None:
        """`thresholds`: label -> the least probability with which it is part of the answer; 0.5 for a label without
        one."""
        self._labels = labels
        self._thresholds = np.array([thresholds.get(label, THRESHOLD) for label in labels])

    def check(self, outputs: ArrayLike, members: Sequence[str]) -> Floats:
        return check_independent(outputs, members, len(self._labels))

    def check_targets(self, targets: ArrayLike, members: Floats) -> NDArray[np.bool_]:
        return check_target_sets(targets, *members.shape[1:])

    def pool(self, members: Floats, weights: Floats, space: Space = "probability") -> Floats:
        return pool_independent(members, weights, space)

    def answer(self, pooled: Floats, members: Floats, weights: Floats) -> FusedSets:
        return self._sets(pooled, pooled >= self._thresholds, members, weights)

    def vote(self, members: Floats, weights: Floats) -> FusedSets:
        """Lets each member vote for the labels at or above their thresholds. A label with more than half of the votes
        is part of the answer. With exactly half, it is if the members' plain average is at or above its threshold."""
        shares = mean((members >= self._thresholds).astype(np.float64), weights)
        tie = np.abs(shares - 0.5) <= TIE
        chosen = np.where(tie, members.mean(axis=0) >= self._thresholds, shares > 0.5)
        return self._sets(shares, chosen, members, weights)

    def loss(self, pooled: Floats, targets: NDArray[Any], criterion: Criterion) -> Loss:
        nats = label_log_loss(pooled, targets)
        if criterion == "micro_f1":
            return -micro_f1(pooled >= self._thresholds, targets), nats
        return nats, 0.0

    def merit(self, member: Floats, targets: NDArray[Any]) -> float:
        """Returns the micro F1."""
        return micro_f1(member >= self._thresholds, targets)

    def evidence(self, members: Floats) -> Floats:
        return log_odds(members)

    def indicators(self, targets: NDArray[Any]) -> Floats:
        return targets.astype(np.float64)

    def from_scores(self, scores: Floats) -> Floats:
        return sigmoid(scores)

    @staticmethod
    def _sets(
        probabilities: Floats, chosen: NDArray[np.bool_], members: Floats, weights: Floats
    ) -> FusedSets:
        return FusedSets(
            probabilities=probabilities,
            entropy=entropy(binary(probabilities)).sum(axis=1),
            disagreement=disagreement(binary(members), weights).sum(axis=1),
            chosen=chosen,
        )
