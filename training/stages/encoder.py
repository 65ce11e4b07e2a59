"""Members with heads: a LoRA and a linear head over the pooled vectors of a text or a pair."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from serve.base.folder import Pooling
from serve.manifest import Task
from training.recipe import LoraStage
from training.stages.fit import Collate, pad_tokens, padding_mask
from training.stages.losses import task_loss

HEAD_FILE = "head.safetensors"

UNIT_SCALE = 20.0
"""What logits over a unit vector are multiplied by while training: a softmax over cosines needs a scale of this size
to become confident (Wang et al. 2017, NormFace), and a head that starts small would take most of the training to grow
there. It is part of the saved weights."""


START_ROWS = 64
"""Rows of one forward pass while a head's start is computed."""
RIDGE = 1.0
"""Keeps the least squares of many columns and few rows small."""


class EncoderWithHead(nn.Module):
    """An encoder, or a causal model as one, with a linear head over its pooled vectors; `forward` gives the Trainer its
    loss."""

    def __init__(
        self,
        encoder: nn.Module,
        hidden: int,
        outputs: int,
        towers: bool,
        task: Task,
        stage: LoraStage,
        pooling: Pooling = "mean",
    ) -> None:
        """`towers`: rows are pairs, whose vectors u and v the head reads as [u, v, |u-v|, u*v]."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(4 * hidden if towers else hidden, outputs)
        self.towers = towers
        self.task = task
        self.stage = stage
        self.pooling = pooling
        self.scale = UNIT_SCALE if stage.normalize and task != "regression" else 1.0

    @torch.no_grad()
    def start_informed(
        self, batches: Iterable[Mapping[str, torch.Tensor]], bfloat16: bool = False
    ) -> None:
        """Let the head begin where it already says something about the rows in `batches`: at the labels' centroids, or
        at the line through the pairs' cosines, or at the least squares of single texts' values. `bfloat16`: the vectors
        are computed in it. Dropout is off, also afterwards."""
        self.eval()
        with torch.autocast(self.head.weight.device.type, torch.bfloat16, enabled=bfloat16):
            seen = [(self.features(batch), batch["labels"]) for batch in batches]
        features = torch.cat([vectors for vectors, _ in seen]).float()
        targets = torch.cat([labels for _, labels in seen])
        if self.task == "regression":
            self._start_at_values(features, targets.float())
        else:
            self._start_at_centroids(features, targets)

    def _start_at_centroids(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """The nearest-centroid classifier, so that a label's row already points where its rows lie (as in Proto-MAML,
        Triantafillou et al. 2020); in multilabel with each label's prior as its bias."""
        labels = len(self.head.weight)
        if self.task == "classification":
            targets = nn.functional.one_hot(targets, labels)
        members = targets.to(features)
        centroids = nn.functional.normalize(members.T @ features, dim=-1)
        self.head.weight.copy_(centroids - centroids.mean(dim=0))
        self.head.bias.zero_()
        if self.task == "multilabel":
            share = (members.sum(dim=0) + 1) / (len(members) + 2)
            prior = share.logit() / self.scale
            self.head.bias.copy_(prior - self.head.weight @ features.mean(dim=0))

    def _start_at_values(self, features: torch.Tensor, values: torch.Tensor) -> None:
        """Least squares of the values on the pairs' cosines, which are the sums over u*v of unit vectors; or, with a
        little ridge, on single texts' vectors."""
        hidden = features.shape[1] // 4
        read = features[:, 3 * hidden :].sum(dim=1, keepdim=True) if self.towers else features
        mean, centre = read.mean(dim=0), values.mean()
        gram = (read - mean).T @ (read - mean) + RIDGE * torch.eye(read.shape[1])
        slope = torch.linalg.solve(gram, (read - mean).T @ (values - centre))
        self.head.weight.zero_()
        if self.towers:
            self.head.weight[:, 3 * hidden :] = slope
        else:
            self.head.weight[0] = slope
        self.head.bias.fill_(float(centre - mean @ slope))

    def features(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the head reads of each row, [rows, hidden] or [rows, 4 x hidden]."""
        mask = batch["attention_mask"]
        states = self.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        vectors = pool(states, mask, self.stage.normalize, self.pooling)
        return towers(*vectors.chunk(2)) if self.towers else vectors

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        features = self.features({"input_ids": input_ids, "attention_mask": attention_mask})
        scores = self.scale * self.head(features)
        return {
            "loss": task_loss(self.task, self.stage, scores.float(), labels),
            "logits": scores,
        }

    def load_head(self, folder: Path) -> None:
        """Go on with the head that `save_head` wrote."""
        tensors = load_file(folder / HEAD_FILE)
        with torch.no_grad():
            self.head.weight.copy_(tensors["weight"] / self.scale)
            self.head.bias.copy_(tensors["bias"] / self.scale)

    def save_head(self, folder: Path) -> None:
        """Write `head.safetensors`: `weight` [outputs, width], `bias` [outputs], and how its inputs are made."""
        tensors = {"weight": self.head.weight, "bias": self.head.bias}
        save_file(
            {
                name: (self.scale * tensor).detach().cpu().contiguous()
                for name, tensor in tensors.items()
            },
            folder / HEAD_FILE,
            metadata={
                "normalize": "true" if self.stage.normalize else "false",
                **({"pair": "towers"} if self.towers else {}),
            },
        )


def towers(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What a head over pairs reads: [u, v, |u-v|, u*v] (Reimers and Gurevych 2019)."""
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def pool(
    states: torch.Tensor,
    attention_mask: torch.Tensor,
    normalize: bool,
    pooling: Pooling = "mean",
) -> torch.Tensor:
    """Mean of `states` [batch, tokens, hidden] over the attention mask, or the last one in it; L2-normalised if asked:
    [batch, hidden]."""
    counts = attention_mask.sum(dim=1).clamp(min=1)
    if pooling == "last":
        vectors = states[torch.arange(len(states)), counts - 1]
    else:
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        vectors = (states * mask).sum(dim=1) / counts.unsqueeze(-1).to(states.dtype)
    return nn.functional.normalize(vectors, dim=-1) if normalize else vectors


def member_features(
    rows: Dataset,
    columns: Sequence[str],
    targets: Sequence[Any],
    tokenizer: Any,
    limit: int,
) -> Dataset:
    """Token ids of the text, and of a second column the pair, cut at `limit`, and the row's target."""
    ids, *pairs = (
        tokenizer(list(rows[column]), truncation=True, max_length=limit)["input_ids"]
        for column in columns
    )
    features = {"input_ids": ids, "labels": targets, "length": [len(row) for row in ids]}
    if pairs:
        features["pair_ids"] = pairs[0]
        features["length"] = [max(map(len, both)) for both in zip(ids, pairs[0], strict=True)]
    return Dataset.from_dict(features)


def collate_for(tokenizer: Any) -> Collate:
    """Batches padded on the right: `input_ids` and `attention_mask` [batch, longest], and `labels` [batch] or
    [batch, labels]. Of pairs, the second texts' rows follow the first ones': [2 x batch, longest]."""

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = [feature["input_ids"] for feature in features]
        ids += [feature["pair_ids"] for feature in features if "pair_ids" in feature]
        return {
            "input_ids": pad_tokens(ids, tokenizer),
            "attention_mask": padding_mask(ids),
            "labels": torch.tensor([feature["labels"] for feature in features]),
        }

    return collate


def batches_of(
    features: Dataset, collate: Collate, size: int = START_ROWS
) -> Iterator[dict[str, torch.Tensor]]:
    """All rows once, the short ones first."""
    lengths = list(features["length"])
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield collate([features[index] for index in order[start : start + size]])
