"""What members on an encoder minimise, by task."""

import torch
from torch.nn import functional as F

from serve.manifest import Task
from training.recipe import LoraStage


def task_loss(
    task: Task, stage: LoraStage, scores: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The loss of a head's scores [N, C]: mean over the rows."""
    if task == "multilabel":
        return label_cross_entropy(scores, targets)
    if task == "regression":
        return value_loss(scores[:, 0], targets, stage.loss)
    return F.cross_entropy(scores, targets, label_smoothing=stage.label_smoothing)


def label_cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over the labels of -[y log p + (1-y) log(1-p)] with p = sigmoid(score), from [N, C] and 0 or 1 [N, C]."""
    return (
        F.binary_cross_entropy_with_logits(scores, targets.to(scores), reduction="none")
        .sum(1)
        .mean()
    )


def value_loss(values: torch.Tensor, targets: torch.Tensor, kind: str) -> torch.Tensor:
    """`mse`: mean squared error; `huber`: squared below an error of 1, linear beyond (Huber 1964). Both [N]."""
    loss = F.mse_loss if kind == "mse" else F.huber_loss
    return loss(values, targets.to(values))
