"""Distillation (Hinton, Vinyals and Dean 2015): the student learns the teacher's probabilities at a temperature.

The log-probabilities of teacher and student are divided by the temperature T, and the soft loss is multiplied by T
squared, so that its gradients keep their size. In classification, the probabilities are over the labels. In generation,
they are over the teacher's most probable tokens at each place of the right answer. In multilabel and regression the
student learns the teacher's probabilities and values as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from serve.labels import LabelPath, encoder, fill, label_paths, label_texts
from serve.manifest import Task
from training.recipe import DistillationStage, EnsembleRecipe
from training.stages.fit import IGNORED, Collate, Loss, pad_tokens, padding_mask

TOP_TOKENS = 32
"""How many of the teacher's most probable tokens are kept at each place."""


@dataclass(frozen=True)
class TopTokens:
    """A teacher's most probable tokens at the places of one answer."""

    tokens: NDArray[np.int64]
    """[places, kept]"""
    log_probs: NDArray[np.float64]
    """[places, kept]"""


class Teacher(Protocol):
    """The model or ensemble that a student learns from. `advance` counts finished texts, once for each pass."""

    passes: int
    """How many passes the teacher makes over each text."""

    def soft_answers(
        self, texts: Sequence[str], pairs: Sequence[str] | None, advance: Callable[[int], None]
    ) -> NDArray[np.float64]:
        """Return the label probabilities [texts, labels], or the values [texts, 1]. `pairs` are the second texts if
        rows are pairs."""

    def answer_tokens(
        self,
        contexts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[TopTokens]:
        """Return the most probable tokens at each place of the given answers."""


@dataclass(frozen=True)
class Distillation:
    """The features, batches and loss of one student."""

    features: Dataset
    collate: Collate
    loss: Loss


def soften(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the probabilities [..., C] at a temperature, from log-probabilities or logits [..., C]."""
    return (log_probs / temperature).softmax(dim=-1)


def soft_losses(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T squared times the cross-entropies [B] of `logits` [B, C] at the temperature T with the softened
    `targets` [B, C]."""
    student = (logits / temperature).log_softmax(dim=-1)
    return -(targets * student).sum(dim=-1) * temperature**2


def for_encoder(
    plain: Dataset,
    collate: Collate,
    soft: NDArray[np.float64],
    recipe: DistillationStage,
    task: Task = "classification",
) -> Distillation:
    """Add the teacher's answers `soft` [rows, labels] or [rows, 1] to the features of a member with a head."""
    mixed = {"multilabel": _mixed_sets, "regression": _mixed_values}.get(task, _mixed)

    def collate_soft(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {**collate(features), "soft": torch.tensor([each["soft"] for each in features])}

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "soft"}
        logits = model(**inputs)["logits"].float()
        return mixed(logits, batch["soft"], batch["labels"], recipe)

    targets = _tempered(soft, recipe) if task == "classification" else soft.tolist()
    return Distillation(plain.add_column("soft", targets), collate_soft, loss)


def for_labels(
    texts: Sequence[str],
    truth: Sequence[int],
    soft: NDArray[np.float64],
    ensemble: EnsembleRecipe,
    labels: Sequence[str],
    tokenizer: Any,
    limit: int,
    recipe: DistillationStage,
) -> Distillation:
    """Make the features of a student that scores labels as text, with the teacher's probabilities `soft` [rows,
    labels].

    The student's label scores are normalised over the labels, as in its answers. If one label's tokens begin with
    another's, both share a row of the batch."""
    encode, written = encoder(tokenizer), label_texts(labels, ensemble.verbalizers)
    rows = []
    for text, right, targets in zip(texts, truth, _tempered(soft, recipe), strict=True):
        paths = label_paths(encode, fill(ensemble.template, text), written)
        sequences, scored = _cut(*_scored_places(paths), limit)
        rows.append(
            {
                "sequences": sequences,
                "scored": scored,
                "sizes": [
                    len(path.tokens) if ensemble.label_scoring == "mean" else 1 for path in paths
                ],
                "soft": targets,
                "labels": right,
                "length": sum(map(len, sequences)),
            }
        )

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        sequences: list[list[int]] = []
        scored: list[list[int]] = []
        for number, each in enumerate(features):
            # Rows and label scores are numbered over the whole batch.
            scored += [
                [len(sequences) + row, place, token, number * len(labels) + label]
                for row, place, token, label in each["scored"]
            ]
            sequences += each["sequences"]
        return {
            "input_ids": pad_tokens(sequences, tokenizer),
            "attention_mask": padding_mask(sequences),
            "scored": torch.tensor(scored),
            "sizes": torch.tensor([each["sizes"] for each in features]),
            "soft": torch.tensor([each["soft"] for each in features]),
            "labels": torch.tensor([each["labels"] for each in features]),
        }

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        log_probs = _own_places(model, batch).log_softmax(dim=-1)
        row, place, token, number = batch["scored"].unbind(dim=1)
        scores = log_probs.new_zeros(batch["soft"].numel())
        scores = scores.index_add(0, number, log_probs[row, place, token])
        logits = scores.view_as(batch["soft"]) / batch["sizes"]
        return _mixed(logits, batch["soft"], batch["labels"], recipe)

    return Distillation(Dataset.from_list(rows), collate, loss)


def answers_of(plain: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    """Split a causal member's features into contexts and answers. The first token of a row is never in the answer,
    because no token before it predicts it."""
    answers = [[token for token in row[1:] if token != IGNORED] for row in plain["labels"]]
    whole = zip(plain["input_ids"], answers, strict=True)
    return [ids[: len(ids) - len(answer)] for ids, answer in whole], answers


def for_answers(
    plain: Dataset, collate: Collate, tops: Sequence[TopTokens], recipe: DistillationStage
) -> Distillation:
    """Add the teacher's tokens at each place of the answers to the features of a student that writes replies."""
    features = plain.add_column("tokens", [top.tokens.tolist() for top in tops]).add_column(
        "soft",
        [soften(torch.from_numpy(top.log_probs), recipe.temperature).tolist() for top in tops],
    )

    def collate_soft(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {
            **collate(rows),
            "tokens": torch.tensor([place for row in rows for place in row["tokens"]]),
            "soft": torch.tensor([place for row in rows for place in row["soft"]]),
        }

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = _own_places(model, batch)[:, :-1]
        following = batch["labels"][:, 1:]
        places = logits[following != IGNORED]
        student = (places / recipe.temperature).log_softmax(dim=-1).gather(1, batch["tokens"])
        soft = -(batch["soft"] * student).sum(dim=-1).mean() * recipe.temperature**2
        hard = nn.functional.cross_entropy(places, following[following != IGNORED])
        return (1 - recipe.hard) * soft + recipe.hard * hard

    return Distillation(features, collate_soft, loss)


def _mixed(
    logits: torch.Tensor, soft: torch.Tensor, truth: torch.Tensor, recipe: DistillationStage
) -> torch.Tensor:
    """Return the loss of a batch. Rows without a right answer (`IGNORED`) have the soft loss alone."""
    hard = nn.functional.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
    softened = soft_losses(logits, soft.to(logits), recipe.temperature)
    share = recipe.hard * (truth != IGNORED)
    return ((1 - share) * softened + share * hard).mean()


def _mixed_sets(
    logits: torch.Tensor, soft: torch.Tensor, truth: torch.Tensor, recipe: DistillationStage
) -> torch.Tensor:
    """Return the loss of a batch of multilabel: the cross-entropy of each label by itself, as `_mixed` otherwise."""
    known = (truth != IGNORED).all(dim=1)
    hard = nn.functional.binary_cross_entropy_with_logits(
        logits, truth.clamp_min(0).to(logits), reduction="none"
    )
    softened = nn.functional.binary_cross_entropy_with_logits(
        logits, soft.to(logits), reduction="none"
    )
    share = recipe.hard * known
    return ((1 - share) * softened.sum(dim=1) + share * hard.sum(dim=1)).mean()


def _mixed_values(
    logits: torch.Tensor, soft: torch.Tensor, truth: torch.Tensor, recipe: DistillationStage
) -> torch.Tensor:
    """Return the loss of a batch of regression: squared errors. A row without a right value has NaN for it."""
    values, known = logits[:, 0], ~truth.isnan()
    softened = (values - soft[:, 0].to(values)) ** 2
    hard = (values - torch.where(known, truth, 0.0).to(values)) ** 2
    share = recipe.hard * known
    return ((1 - share) * softened + share * hard).mean()


def _tempered(soft: NDArray[np.float64], recipe: DistillationStage) -> list[list[float]]:
    log_probs = torch.from_numpy(soft).clamp_min(1e-12).log()
    rows: list[list[float]] = soften(log_probs, recipe.temperature).tolist()
    return rows


def _own_places(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits [B, tokens, V] at the batch's tokens, without those of virtual tokens (prompt tuning)."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
    return logits[:, -ids.shape[1] :].float()


def _scored_places(paths: Sequence[LabelPath]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the fewest rows of tokens that score all labels, and each scored token as [row, the place before it,
    token, label]."""
    needed = {(*path.context, *path.tokens[:-1]) for path in paths}
    rows = sorted(
        row for row in needed if not any(other[: len(row)] == row for other in needed - {row})
    )
    scored = []
    for label, path in enumerate(paths):
        before = (*path.context, *path.tokens[:-1])
        row = next(number for number, each in enumerate(rows) if each[: len(before)] == before)
        start = len(path.context) - 1
        scored += [[row, start + step, token, label] for step, token in enumerate(path.tokens)]
    return [list(row) for row in rows], scored


def _cut(
    rows: list[list[int]], scored: list[list[int]], limit: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Cut the beginning off all rows, so that no row has more than `limit` tokens."""
    excess = max(0, max(map(len, rows)) - limit)
    kept = [[row, place - excess, *rest] for row, place, *rest in scored if place >= excess]
    return [row[excess:] for row in rows], kept
