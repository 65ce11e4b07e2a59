"""The model, rows and batches of members with heads. A head is linear over the pooled vector of a text or a pair."""

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
from training.stages.towers.inputs import tower_vectors

HEAD_FILE = "head.safetensors"

UNIT_SCALE = 20.0
"""Logits over unit vectors are multiplied by this in training. A softmax over cosines needs such a scale to become
confident (Wang et al. 2017, NormFace), and a small head would need most of the training to grow to it. The saved
weights include the scale."""


START_ROWS = 64
"""Rows in one forward pass while the start of a head is computed."""
RIDGE = 1.0
"""The ridge penalty of the least squares, which keeps the weights small if there are few rows."""


class EncoderWithHead(nn.Module):
    """An encoder, or a causal model used as one, with a linear head over its pooled vectors. `forward` returns the loss
    for the Trainer."""

    def __init__(
        self,
        encoder: nn.Module,
        hidden: int,
        outputs: int,
        towers: bool,
        task: Task,
        stage: LoraStage,
        pooling: Pooling | None = "mean",
    ) -> None:
        """`towers` says that rows are pairs, whose vectors u and v the head reads as [u, v, |u-v|, u*v]. `pooling` is
        None for a CLIP or SigLIP, which gives one vector of each text or image."""
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
        """Initialise the head from the rows in `batches`: with the labels' centroids or, in regression, by least
        squares on the pairs' cosines or the texts' vectors.

        With `bfloat16`, the vectors are computed in bfloat16. The model is in evaluation mode afterwards."""
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
        """Make the head a nearest-centroid classifier (as in Proto-MAML, Triantafillou et al. 2020). In multilabel,
        each label's bias comes from its prior."""
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
        """Fit the head to the values by ridge regression: on the pairs' cosines, which are the sums of u*v over unit
        vectors, or on the vectors of single texts."""
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
        """Return the inputs of the head: [rows, hidden], or [rows, 4 x hidden] for pairs."""
        if self.pooling is None:
            vectors = tower_vectors(self.encoder, batch)
            if self.stage.normalize:
                vectors = nn.functional.normalize(vectors, dim=-1)
        else:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors = pool(states, mask, self.stage.normalize, self.pooling)
        return towers(*vectors.chunk(2)) if self.towers else vectors

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(batch)
        scores = self.scale * self.head(features)
        return {
            "loss": task_loss(self.task, self.stage, scores.float(), labels),
            "logits": scores,
        }

    def load_head(self, folder: Path) -> None:
        """Load the head that `save_head` wrote, to train it further."""
        tensors = load_file(folder / HEAD_FILE)
        with torch.no_grad():
            self.head.weight.copy_(tensors["weight"] / self.scale)
            self.head.bias.copy_(tensors["bias"] / self.scale)

    def save_head(self, folder: Path) -> None:
        """Write `head.safetensors`: `weight` [outputs, width], `bias` [outputs], and metadata on its inputs."""
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
                **({} if self.pooling in ("mean", None) else {"pooling": str(self.pooling)}),
            },
        )


def towers(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the inputs of a head over pairs: [u, v, |u-v|, u*v] (Reimers and Gurevych 2019)."""
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def pool(
    states: torch.Tensor,
    attention_mask: torch.Tensor,
    normalize: bool,
    pooling: Pooling = "mean",
) -> torch.Tensor:
    """Pool `states` [batch, tokens, hidden] to vectors [batch, hidden]: their mean over the attention mask, or the
    first or the last state in it; with `normalize`, L2-normalised. Padding is on the right."""
    counts = attention_mask.sum(dim=1).clamp(min=1)
    if pooling == "cls":
        vectors = states[:, 0]
    elif pooling == "last":
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
    """Turn rows into features: `input_ids` of the first column, `pair_ids` of a second one, `labels` and `length`.
    Texts are cut after `limit` tokens."""
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
    """Return the function that makes batches, padded on the right: `input_ids` and `attention_mask` [batch, longest],
    and `labels` [batch] or [batch, labels]. For pairs, all first texts come before all second texts: [2 x batch,
    longest]."""

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
    """Yield batches of at most `size` rows that hold all rows once, short rows first."""
    lengths = list(features["length"])
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield collate([features[index] for index in order[start : start + size]])
