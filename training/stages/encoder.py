"""Members on an encoder: a LoRA and a linear head over the mean-pooled vector."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from training.recipe import EnsembleRecipe
from training.stages.fit import Collate, pad, padding_mask

HEAD_FILE = "head.safetensors"

UNIT_SCALE = 20.0
"""What logits over a unit vector are multiplied by while training: a softmax over cosines needs a scale of this size
to become confident (Wang et al. 2017, NormFace), and a head that starts small would take most of the training to grow
there. It is part of the saved weights."""


PROTOTYPE_ROWS = 64
"""Rows of one forward pass while the prototypes are computed."""


class EncoderClassifier(nn.Module):
    """An encoder with a head; `forward` gives the Trainer its loss."""

    def __init__(
        self, encoder: nn.Module, hidden: int, labels: int, normalize: bool, label_smoothing: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden, labels)
        self.normalize = normalize
        self.scale = UNIT_SCALE if normalize else 1.0
        self.label_smoothing = label_smoothing

    @torch.no_grad()
    def start_from_prototypes(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Let the head begin as the base's nearest-centroid classifier, so that a label's row already points where its
        rows lie (as in Proto-MAML, Triantafillou et al. 2020); each label occurs in `batches`."""
        sums = torch.zeros_like(self.head.weight)
        for batch in batches:
            states = self.encoder(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            vectors = pool(states, batch["attention_mask"], normalize=True).to(sums)
            sums.index_add_(0, batch["labels"], vectors)
        centroids = nn.functional.normalize(sums, dim=-1)
        self.head.weight.copy_(centroids - centroids.mean(dim=0))
        self.head.bias.zero_()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.scale * self.head(pool(states, attention_mask, self.normalize))
        loss = nn.functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing
        )
        return {"loss": loss, "logits": logits}

    def load_head(self, folder: Path) -> None:
        """Go on with the head that `save_head` wrote."""
        tensors = load_file(folder / HEAD_FILE)
        with torch.no_grad():
            self.head.weight.copy_(tensors["weight"] / self.scale)
            self.head.bias.copy_(tensors["bias"] / self.scale)

    def save_head(self, folder: Path) -> None:
        """Write `head.safetensors`: `weight` [labels, hidden], `bias` [labels], and whether inputs are normalised."""
        tensors = {"weight": self.head.weight, "bias": self.head.bias}
        save_file(
            {
                name: (self.scale * tensor).detach().cpu().contiguous()
                for name, tensor in tensors.items()
            },
            folder / HEAD_FILE,
            metadata={"normalize": "true" if self.normalize else "false"},
        )


def pool(states: torch.Tensor, attention_mask: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Mean of `states` [batch, tokens, hidden] over the attention mask, L2-normalised if asked: [batch, hidden]."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1) if normalize else mean


def member_features(
    rows: Dataset,
    text: str,
    ensemble: EnsembleRecipe,
    labels: Sequence[str],
    tokenizer: Any,
    limit: int,
) -> Dataset:
    """Token ids, cut at `limit`, and the index of each row's label in `labels`."""
    index = {label: number for number, label in enumerate(labels)}
    ids = tokenizer(list(rows[text]), truncation=True, max_length=limit)["input_ids"]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": [index[label] for label in rows[ensemble.label]],
            "length": [len(row) for row in ids],
        }
    )


def collate_for(tokenizer: Any) -> Collate:
    """Batches padded on the right: `input_ids` and `attention_mask` [batch, longest], `labels` [batch]."""

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(ids, tokenizer.pad_token_id),
            "attention_mask": padding_mask(ids),
            "labels": torch.tensor([feature["labels"] for feature in features]),
        }

    return collate


def batches_of(
    features: Dataset, collate: Collate, size: int = PROTOTYPE_ROWS
) -> Iterator[dict[str, torch.Tensor]]:
    """All rows once, the short ones first."""
    lengths = list(features["length"])
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield collate([features[index] for index in order[start : start + size]])
