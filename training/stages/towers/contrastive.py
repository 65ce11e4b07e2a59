"""Training of a CLIP or SigLIP on images and their captions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from training.data.steps import FAMILY
from training.recipe import RecipeError
from training.stages.fit import FitOptions, Stage, fit, fit_rows
from training.stages.towers.inputs import TowerInputs

LARGEST_SCALE = math.log(100)
"""The logarithm of the largest factor of the cosines, as in CLIP's training (Radford et al. 2021)."""


def train_on_captions(
    model: Any,
    inputs: TowerInputs,
    rows: Dataset,
    image: str | None,
    captions: Sequence[str],
    options: FitOptions,
    stage: Stage,
) -> None:
    """Train a model in place on the images of the column `image`. Each template in `captions` makes one caption for
    each row. Raises RecipeError if the rows have no images."""
    if image is None:
        raise RecipeError(
            "base: a CLIP or SigLIP is pretrained on images and their captions; name the column in data.image"
        )
    features = Dataset.from_dict(
        {
            "image": [row[image] for row in rows for _ in captions],
            "caption": [caption.format_map(row) for row in rows for caption in captions],
            "length": [1] * (len(rows) * len(captions)),
        }
    )
    known = rows[FAMILY] if FAMILY in rows.column_names else range(len(rows))
    families = [family for family in known for _ in captions]

    def collate(each: Sequence[Any]) -> dict[str, torch.Tensor]:
        written = [one["caption"] for one in each]
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(written))}
        return {
            **inputs.batch([one["image"] for one in each]),
            **inputs.batch(written),
            "labels": torch.tensor([numbers[caption] for caption in written]),
        }

    set_seed(options.seed)
    paired = sigmoid_loss if model.config.model_type == "siglip" else softmax_loss

    def loss(trained: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        with torch.no_grad():
            trained.logit_scale.clamp_(max=LARGEST_SCALE)
        logits = trained(**batch).logits_per_image.float()
        return paired(logits, labels[:, None] == labels[None, :])

    fit(model, fit_rows(features, families, options), collate, options, stage, loss)


def softmax_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return CLIP's loss of scores [images, captions]: the cross-entropy of each row and of each column. Where several
    captions of a batch are equal (`same` [images, captions]), all of them are right (UniCL, Yang et al. 2022)."""
    right = same.to(logits)
    over_captions = F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))
    over_images = F.cross_entropy(logits.T, right.T / right.T.sum(dim=1, keepdim=True))
    return (over_captions + over_images) / 2


def sigmoid_loss(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return SigLIP's loss of scores [images, captions]: each pair is judged by itself (Zhai et al. 2023). `same`
    [images, captions] says which pairs belong together."""
    signs = torch.where(same, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()
