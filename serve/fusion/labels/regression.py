"""The rules of regression: one number for each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.fusion.fused import FusedValues
from serve.fusion.labels.pooling import mean
from serve.fusion.labels.rules import Criterion, Loss, Rules
from serve.fusion.members import Floats, check_target_values, check_values
from serve.manifest import Space


class RegressionRules(Rules):
    criteria = ("squared_error",)

    def check(self, outputs: ArrayLike, members: Sequence[str]) -> Floats:
        return check_values(outputs, members)

    def check_targets(self, targets: ArrayLike, members: Floats) -> Floats:
        return check_target_values(targets, members.shape[1])

    def pool(self, members: Floats, weights: Floats, space: Space = "probability") -> Floats:
        return mean(members, weights)

    def answer(self, pooled: Floats, members: Floats, weights: Floats) -> FusedValues:
        spread = mean((members - mean(members, weights)) ** 2, weights)
        return FusedValues(pooled, np.sqrt(spread))

    def loss(self, pooled: Floats, targets: NDArray[Any], criterion: Criterion) -> Loss:
        return float(((pooled - targets) ** 2).mean()), 0.0

    def merit(self, member: Floats, targets: NDArray[Any]) -> float:
        """Returns the inverse of the mean squared error (Bates and Granger 1969)."""
        return 1 / max(self.loss(member, targets, "squared_error")[0], 1e-12)

    def evidence(self, members: Floats) -> Floats:
        return members[..., np.newaxis]

    def indicators(self, targets: NDArray[Any]) -> Floats:
        return np.asarray(targets)[:, np.newaxis]

    def from_scores(self, scores: Floats) -> Floats:
        return scores[:, 0]
