"""A recipe with an activated LoRA: what is trained, and that it acts where PEFT would answer as the base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from serve.adapter import invocation_of
from serve.bundle import Bundle
from tests.training.conftest import recipe_content
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import EnsembleRecipe, RecipeError
from training.stages import causal

ASKS = "\nTopic:"


def ensemble(**changes: Any) -> EnsembleRecipe:
    fields = {
        "name": "topics",
        "task": "generation",
        "target": "reply",
        "template": f"{{text}}{ASKS}",
    }
    return EnsembleRecipe.model_validate(
        {**fields, "members": [{"name": "a", "kind": "alora"}], **changes}
    )


def test_a_trained_member_acts_from_its_invocation_on(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    """On the base of another bundle, so that only the adapter is trained."""
    topics = recipe_content()["ensembles"][0]
    topics |= {
        "template": f"User: {{text}}{ASKS}",
        "defaults": {"epochs": 3, "batch_size": 16, "rank": 4, "learning_rate": 0.02},
        "members": [{"name": "a", "kind": "alora", "seed": 1}, {"name": "b", "seed": 2}],
        "candidates": [],
        "baselines": [],
    }
    base = {"kind": "causal", "path": causal_bundle.base_source}
    bundle = train(write_recipe(tmp_path, base=base, ensembles=[topics]), tmp_path / "bundle")
    made = bundle.ensemble("topics")
    tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
    [reference] = made.members[0].adapters
    asks = tokenizer(ASKS, add_special_tokens=False)["input_ids"]
    assert list(invocation_of(bundle.adapter_dir(reference))) == asks
    assert bundle.verify() == []
    texts = ["my card is lost number 1", "send money abroad number 4"]
    plain = made.members[0].model_copy(update={"name": "plain", "adapters": []})
    both = made.model_copy(update={"members": [made.members[0], plain]})
    trained, base_alone = OfflineMembers(bundle, both).outputs(texts)
    assert np.abs(trained - base_alone).max() > 0.05
    assert (trained.argmax(axis=1) == [0, 2]).all() or trained.max() > 0.5


def test_only_the_answer_has_a_loss_and_the_invocation_is_tokenised_by_itself(
    causal_bundle: Bundle,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    rows = Dataset.from_dict({"text": ["my card is lost"], "reply": ["We send a card."]})
    [row] = causal.member_features(rows, "text", ensemble(), tokenizer, 64, ASKS)
    asks = tokenizer(ASKS, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("my card is lost")["input_ids"] + asks
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    assert tokenizer.decode(row["input_ids"][len(prompt) : -1]) == " We send a card."


def test_an_answer_that_holds_the_invocation_is_refused(causal_bundle: Bundle) -> None:
    """PEFT would take it for the place where the adapter begins."""
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    rows = Dataset.from_dict({"text": ["my card"], "reply": [f"It is{ASKS} card"]})
    with pytest.raises(RecipeError, match="holds the invocation"):
        causal.member_features(rows, "text", ensemble(), tokenizer, 64, ASKS)
