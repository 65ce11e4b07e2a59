"""The rules of classification: one label for each row, of labels that exclude each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.fusion.errors import FusionError
from serve.fusion.fused import Fused
from serve.fusion.labels.measures import accuracy, disagreement, entropy, log_loss
from serve.fusion.labels.pooling import log_odds, pool, softmax
from serve.fusion.labels.rules import Criterion, Loss, Rules
from serve.fusion.labels.vote import vote
from serve.fusion.members import Floats, Ints, check_probabilities, check_targets
from serve.manifest import Space


class ClassificationRules(Rules):
    criteria = ("log_loss", "accuracy")

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        """`labels` are needed for a vote only. Without them, any number of labels is accepted."""
        self._labels = labels

    def check(self, outputs: ArrayLike, members: Sequence[str]) -> Floats:
        return check_probabilities(
            outputs, members, None if self._labels is None else len(self._labels)
        )

    def check_targets(self, targets: ArrayLike, members: Floats) -> Ints:
        return check_targets(targets, *members.shape[1:])

    def pool(self, members: Floats, weights: Floats, space: Space = "probability") -> Floats:
        return pool(members, weights, space)

    def answer(self, pooled: Floats, members: Floats, weights: Floats) -> Fused:
        apart = disagreement(members, weights)
        return Fused(pooled, entropy(pooled), apart, pooled.argmax(axis=1))

    def vote(self, members: Floats, weights: Floats) -> Fused:
        if self._labels is None:
            raise FusionError("A vote needs the labels, by whose order ties are broken.")
        shares, winners = vote(members, weights, self._labels)
        return Fused(shares, entropy(shares), disagreement(members, weights), winners)

    def loss(self, pooled: Floats, targets: NDArray[Any], criterion: Criterion) -> Loss:
        nats = log_loss(pooled, targets)
        return (-accuracy(pooled, targets), nats) if criterion == "accuracy" else (nats, 0.0)

    def merit(self, member: Floats, targets: NDArray[Any]) -> float:
        """Returns the accuracy."""
        return accuracy(member, targets)

    def evidence(self, members: Floats) -> Floats:
        return log_odds(members)

    def indicators(self, targets: NDArray[Any]) -> Floats:
        labels = int(targets.max()) + 1 if self._labels is None else len(self._labels)
        chosen: Floats = np.eye(labels)[targets]
        return chosen

    def from_scores(self, scores: Floats) -> Floats:
        """Returns sigmoid(score) of each label, scaled so that a row sums to 1, as scikit-learn's OneVsRestClassifier
        does."""
        with np.errstate(
            invalid="ignore"
        ):  # the answer is checked: what is no number is found there
            return softmax(-np.logaddexp(0.0, -scores))
