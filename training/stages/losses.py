"""The losses of members with heads, by task."""

import torch
from torch.nn import functional as F

from serve.manifest import Task
from training.recipe import LoraStage


def task_loss(
    task: Task, stage: LoraStage, scores: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the loss of a head's scores [N, C], averaged over the rows."""
    if task == "multilabel":
        return label_cross_entropy(scores, targets)
    if task == "regression":
        return value_loss(scores[:, 0], targets, stage.loss)
    return F.cross_entropy(scores, targets, label_smoothing=stage.label_smoothing)


def label_cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over the rows of the sum over the labels of -[y log p + (1-y) log(1-p)] with p = sigmoid(score);
    scores are [N, C], and targets 0 or 1 [N, C]."""
    return (
        F.binary_cross_entropy_with_logits(scores, targets.to(scores), reduction="none")
        .sum(1)
        .mean()
    )


def value_loss(values: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the loss of values [N] against targets [N]. `mse` is the mean squared error; `huber` is squared for errors
    below 1 and linear above (Huber 1964)."""
    loss = F.mse_loss if kind == "mse" else F.huber_loss
    return loss(values, targets.to(values))
