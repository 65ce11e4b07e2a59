"""The model of members that classify by prompts: a CLIP or SigLIP whose scores are its scaled cosines with the labels'
texts. It has no head."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training.recipe import LoraStage
from training.stages.losses import task_loss
from training.stages.towers.inputs import Batch, tower_vectors


class PromptedClassifier(nn.Module):
    """A base with two towers, trained by the cross-entropy of its answers. `forward` returns the loss for the
    Trainer."""

    def __init__(self, encoder: Any, texts: Batch, prompts: int, stage: LoraStage) -> None:
        """`texts` are those of all labels [labels x prompts], prompt by prompt of each label."""
        super().__init__()
        self.encoder = encoder
        self.stage = stage
        self._texts = texts
        self._prompts = prompts

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = F.normalize(tower_vectors(self.encoder, batch), dim=-1)
        scores = self.encoder.logit_scale.exp() * vectors @ self._label_vectors().T
        loss = task_loss("classification", self.stage, scores.float(), labels)
        return {"loss": loss, "logits": scores}

    def _label_vectors(self) -> torch.Tensor:
        """Return each label's vector [labels, width]: the normalised mean of its texts' normalised vectors. They are
        computed anew for each batch, because a LoRA may change the tower of texts."""
        device = self.encoder.logit_scale.device
        texts = {name: tensor.to(device) for name, tensor in self._texts.items()}
        vectors = F.normalize(tower_vectors(self.encoder, texts), dim=-1)
        means = vectors.unflatten(0, (-1, self._prompts)).mean(dim=1)
        return F.normalize(means, dim=-1)

    def start_informed(
        self, batches: Iterable[Mapping[str, torch.Tensor]], bfloat16: bool = False
    ) -> None:
        """Do nothing: the labels' texts are the start."""

    def load_head(self, folder: Path) -> None:
        """Do nothing: there is no head."""

    def save_head(self, folder: Path) -> None:
        """Do nothing: there is no head."""
