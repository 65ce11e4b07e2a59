"""Chooses the rules of a task, and turns the scores of heads and labels into members' outputs."""

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
    """Returns the rules of the ensemble's task. Raises FusionError for generation, which is fused by token or by whole
    answers."""
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
    """Returns the members' outputs for their scores [M, N, C]. Classification: probabilities [M, N, C] that sum to 1.
    Multilabel: each label's own probability [M, N, C]. Regression (C = 1): values [M, N]."""
    if task == "regression":
        return np.asarray(scores[..., 0])
    return sigmoid(scores) if task == "multilabel" else softmax(scores)
