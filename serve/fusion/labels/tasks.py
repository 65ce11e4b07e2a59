"""The rules of each task, and from a head's scores to what a member says."""

import numpy as np

from serve.fusion.errors import FusionError
from serve.fusion.labels.classification import ClassificationRules
from serve.fusion.labels.multilabel import MultilabelRules
from serve.fusion.labels.pooling import sigmoid, softmax
from serve.fusion.labels.regression import RegressionRules
from serve.fusion.labels.rules import Rules
from serve.fusion.members import Floats
from serve.manifest import Ensemble, Task


def rules_of(ensemble: Ensemble) -> Rules:
    """Raises FusionError for generation, which is fused token by token or by whole answers."""
    labels = ensemble.labels or ()
    if ensemble.task == "classification":
        return ClassificationRules(labels)
    if ensemble.task == "multilabel":
        return MultilabelRules(labels, ensemble.thresholds)
    if ensemble.task == "regression":
        return RegressionRules()
    raise FusionError(
        "Text is fused token by token or by a vote on answers, not as labels or values."
    )


def outputs(task: Task, scores: Floats) -> Floats:
    """What members say by their scores [M, N, C]: probabilities [M, N, C] that sum to 1 (classification) or are each
    label's own (multilabel), or values [M, N] (regression, C = 1)."""
    if task == "regression":
        return np.asarray(scores[..., 0])
    return sigmoid(scores) if task == "multilabel" else softmax(scores)
