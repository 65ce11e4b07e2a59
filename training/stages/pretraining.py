"""Pretraining on documents. It predicts the next token, masked tokens, or masked tokens and next sentences."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertForPreTraining,
    set_seed,
)

from serve.base.positions import longest_text
from training.data.splits import hold_out
from training.recipe import Objective, RecipeError
from training.stages.causal import collate_for as causal_batches
from training.stages.causal import end_token
from training.stages.documents import Documents
from training.stages.fit import (
    IGNORED,
    Collate,
    FitOptions,
    FitRows,
    Stage,
    fit,
    fit_rows,
    pad,
    pad_tokens,
    padding_mask,
)

MASKED = 0.15
"""Share of tokens that have a loss. Of these, 80% are replaced by the mask token, 10% by a random token, and 10% stay
(Devlin et al. 2019)."""
HELD_OUT = 0.05
"""Share of the documents that is held out to judge the model."""
JUDGED_ROWS = 32
"""Rows in one forward pass while the model is judged."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Pretrained:
    """The losses on held-out documents, in nats per token."""

    loss: float
    unigram: float
    """The loss of a model that knows only how often each token occurs in the documents."""


def masked_model(folder: Path, objective: Objective) -> Any:
    """Load the encoder in `folder` with the head that a masked objective needs. A head that the folder lacks starts at
    random.

    Raises RecipeError if the model cannot have the head."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "bert":
        return BertForPreTraining.from_pretrained(folder, dtype="float32")
    if objective == "masked_next_sentence":
        raise RecipeError(
            f"masked_next_sentence needs a BERT, which {folder.name} is not; use masked"
        )
    return AutoModelForMaskedLM.from_pretrained(folder, dtype="float32")


def pretrain(
    model: Any,
    tokenizer: Any,
    documents: Documents,
    objective: Objective,
    options: FitOptions,
    stage: Stage,
) -> Pretrained:
    """Train a model in place, and judge it on held-out documents. If all documents are of one family, none can be held
    out, and it is judged on the documents that it was trained on.

    Raises RecipeError if the objective needs pairs of sentences and there are none, or a token that the tokenizer
    lacks.
    """
    if objective == "masked_next_sentence":
        _demand_sentences(documents.texts)
    context = longest_text(model.config.to_dict())

    def features(rows: Dataset) -> Dataset:
        return _features(list(rows["document"]), tokenizer, context, objective, options.seed)

    share = max(HELD_OUT, 1 / max(len(documents.texts), 1))
    kept, held = hold_out(documents.families, share, options.seed)
    # Documents are split before pairs are made, because a pair may take its sentences from two documents.
    seen = fit_rows(
        Dataset.from_dict({"document": [documents.texts[index] for index in kept]}),
        [documents.families[index] for index in kept],
        options,
    )
    train = features(seen.train)
    rows = FitRows(train, None if seen.held_out is None else features(seen.held_out))
    unseen = [documents.texts[index] for index in held or kept]
    causal = objective == "autoregressive"
    collate = causal_batches(tokenizer) if causal else _Masking(tokenizer)
    set_seed(options.seed)
    fit(model, rows, collate, options, stage, None if causal else _masked_loss)
    set_seed(options.seed)
    unread = features(Dataset.from_dict({"document": unseen}))
    pretrained: Pretrained = held_out_losses(model, train["input_ids"], unread, collate, causal)
    return pretrained


def save_pretrained(model: Any, tokenizer: Any, target: Path) -> None:
    """Write the model to `target` as a base; an encoder is written without its head."""
    encoder = not type(model).__name__.endswith(("ForCausalLM", "ForConditionalGeneration"))
    (model.base_model if encoder else model).save_pretrained(target)
    tokenizer.save_pretrained(target)


class _Masking:
    """Makes batches in which random places are masked. The labels at these places are the original tokens."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises RecipeError if the tokenizer has no mask token."""
        if tokenizer.mask_token_id is None:
            raise RecipeError(
                "a masked objective needs a mask token, and the base's tokenizer has none (mask_token); choose another "
                "base, or leave pretraining out"
            )
        self._tokenizer = tokenizer
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = [feature["input_ids"] for feature in features]
        tokens, mask = pad_tokens(ids, self._tokenizer), padding_mask(ids)
        chosen = self._chosen(tokens, mask.bool())
        labels = tokens.masked_fill(~chosen, IGNORED)
        fate = torch.rand(tokens.shape)
        anything = torch.randint(len(self._tokenizer), tokens.shape)
        tokens = torch.where(chosen & (fate < 0.8), self._tokenizer.mask_token_id, tokens)
        tokens = torch.where(chosen & (fate >= 0.9), anything, tokens)
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": pad([feature["token_type_ids"] for feature in features], 0),
            "labels": labels,
            "next_sentence_label": torch.tensor(
                [feature["next_sentence_label"] for feature in features]
            ),
        }

    def _chosen(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Choose the places that have a loss [rows, longest]: in each row the share `MASKED` of its ordinary tokens,
        and at least one. Special tokens and the places that `mask` hides are never chosen."""
        ordinary = mask & ~torch.isin(tokens, self._special)
        scores = torch.rand(tokens.shape).masked_fill(~ordinary, 2.0)
        usable = (scores < 1.0).sum(dim=1, keepdim=True)
        count = (usable * MASKED).round().long().clamp(min=1).minimum(usable)
        rank = scores.argsort(dim=1).argsort(dim=1)
        return rank < count


def _masked_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    following = batch["next_sentence_label"]
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
    )
    chosen = batch["labels"] != IGNORED
    loss = nn.functional.cross_entropy(_logits(out)[chosen].float(), batch["labels"][chosen])
    if (following != IGNORED).any():
        loss = loss + nn.functional.cross_entropy(
            out.seq_relationship_logits.float(), following, ignore_index=IGNORED
        )
    return loss


def _logits(out: Any) -> torch.Tensor:
    logits: torch.Tensor = out.prediction_logits if "prediction_logits" in out else out.logits
    return logits


def _features(
    documents: Sequence[str], tokenizer: Any, context: int, objective: Objective, seed: int
) -> Dataset:
    if objective == "autoregressive":
        rows = []
        end = end_token(tokenizer, "pretraining")
        for document in documents:
            ids = [*tokenizer(document)["input_ids"][: context - 1], end]
            rows.append({"input_ids": ids, "labels": ids, "length": len(ids)})
        return Dataset.from_list(rows)
    pairs: list[tuple[str, str | None, int]] = [(document, None, IGNORED) for document in documents]
    if objective == "masked_next_sentence":
        pairs = _sentence_pairs(documents, seed)
    rows = []
    for first, second, follows in pairs:
        encoded = tokenizer(
            first, second, truncation=True, max_length=context, return_token_type_ids=True
        )
        rows.append(
            {
                "input_ids": encoded["input_ids"],
                "token_type_ids": encoded["token_type_ids"],
                "next_sentence_label": follows,
                "length": len(encoded["input_ids"]),
            }
        )
    return Dataset.from_list(rows)


def _sentence_pairs(documents: Sequence[str], seed: int) -> list[tuple[str, str | None, int]]:
    """Pair each sentence with the next one (label 0). In half of the pairs, the second sentence is from another
    document (label 1). A document of one sentence gives that sentence alone, without a label."""
    rng = np.random.default_rng(seed)
    split = list(map(_sentences, documents))
    pairs: list[tuple[str, str | None, int]] = []
    for sentences in split:
        if len(sentences) == 1:
            pairs.append((sentences[0], None, IGNORED))
        for first, second in pairwise(sentences):
            stranger = split[int(rng.integers(len(split)))]
            if rng.random() < 0.5 and stranger and stranger is not sentences:
                pairs.append((first, stranger[int(rng.integers(len(stranger)))], 1))
            else:
                pairs.append((first, second, 0))
    return pairs


def _demand_sentences(documents: Sequence[str]) -> None:
    """Check that some document has two sentences. Raises RecipeError otherwise."""
    if all(len(_sentences(document)) < 2 for document in documents):
        raise RecipeError(
            "masked_next_sentence needs documents of two sentences or lines and more; these have one each"
        )


def _sentences(document: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(document.strip()) if part]


@torch.no_grad()
def held_out_losses(
    model: nn.Module,
    seen: Sequence[Sequence[int]],
    unseen: Dataset,
    collate: Collate,
    causal: bool,
) -> Pretrained:
    """Return the model's and the unigram model's loss on the same tokens of the features `unseen`. `seen`: the tokens
    of the documents that the model was trained on."""
    counts = Counter(token for ids in seen for token in ids)
    total = sum(counts.values())
    known = len(counts) + 1
    losses: list[float] = []
    unigram: list[float] = []
    for start in range(0, len(unseen), JUDGED_ROWS):
        batch = collate(
            [unseen[index] for index in range(start, min(start + JUDGED_ROWS, len(unseen)))]
        )
        logits, labels = _predictions(model, batch, causal)
        chosen = labels != IGNORED
        losses += nn.functional.cross_entropy(
            logits[chosen].float(), labels[chosen], reduction="none"
        ).tolist()
        # Each token is counted once more (Laplace), so that unseen tokens have a probability too.
        unigram += [
            -math.log((counts[token] + 1) / (total + known)) for token in labels[chosen].tolist()
        ]
    return Pretrained(float(np.mean(losses)), float(np.mean(unigram)))


def _predictions(
    model: nn.Module, batch: dict[str, torch.Tensor], causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "next_sentence_label")}
    logits = _logits(model(**inputs))
    return (logits[:, :-1], batch["labels"][:, 1:]) if causal else (logits, batch["labels"])
