"""Temperature scaling (Guo et al. 2017), fitted on and applied to pooled probabilities."""

import numpy as np
from numpy.typing import ArrayLike

from serve.fusion.labels.measures import log_loss
from serve.fusion.labels.pooling import logs, softmax
from serve.fusion.members import Floats, check_probabilities, check_targets

BOUNDS = (0.05, 20.0)
"""A fitted temperature outside these bounds would mean that the validation data is too small or separable, not that the
members are miscalibrated."""


def temper(probabilities: Floats, temperature: float) -> Floats:
    """Returns softmax(log p / T) over the last axis; a temperature T above 1 makes the probabilities more even."""
    if temperature == 1:
        return probabilities
    return softmax(logs(probabilities) / temperature)


def fit_temperature(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Returns the temperature that minimises the log loss of fused probabilities [N, C] for true label indices [N].

    The loss is convex in 1/T, so a bounded scalar search finds its minimum, within `BOUNDS`. Raises FusionError for
    unsound input."""
    from scipy.optimize import minimize_scalar

    (pooled,) = check_probabilities(np.asarray(probabilities)[None], ["the fused answer"])
    truth = check_targets(targets, *pooled.shape)

    def loss(log_sharpness: float) -> float:
        return log_loss(temper(pooled, float(np.exp(-log_sharpness))), truth)

    low, high = (-float(np.log(bound)) for bound in reversed(BOUNDS))
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))
