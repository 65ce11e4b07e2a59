"""Rows of a causal base whose tokenizer lacks special tokens, as GPT-2's lacks one for padding."""

from typing import Any

import pytest
import torch
from datasets import Dataset

from training.recipe import EnsembleRecipe, RecipeError
from training.stages import causal
from training.stages.scratch import train_tokenizer

TEXTS = ["where is my card", "it is late"]


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 300, 64)


def features(tokenizer: Any) -> Dataset:
    rows = Dataset.from_dict({"text": TEXTS, "reply": ["We send a new card.", "Sorry."]})
    ensemble = EnsembleRecipe(
        name="replies", task="generation", target="reply", members=[{"name": "a"}]
    )
    return causal.member_features(rows, "text", ensemble, tokenizer, 64)


def test_without_a_padding_token_batches_differ_in_hidden_places_alone(tokenizer: Any) -> None:
    rows = list(features(tokenizer))
    expected = causal.collate_for(tokenizer)(rows)
    tokenizer.pad_token = None
    batch = causal.collate_for(tokenizer)(rows)
    seen = expected["attention_mask"].bool()
    assert not seen.all()
    for name in ("attention_mask", "labels"):
        torch.testing.assert_close(batch[name], expected[name])
    torch.testing.assert_close(batch["input_ids"][seen], expected["input_ids"][seen])


def test_replies_without_an_end_token_are_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match=r"ensemble 'replies': .* has no end token \(eos_token\)"):
        features(tokenizer)
