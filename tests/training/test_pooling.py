"""Which vector of a text the heads of new members read: what the recipe says, or the base's own `1_Pooling`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from serve.base.side_files import read_pooling
from serve.bundle import Bundle
from tests.training.conftest import TOPICS, recipe_content
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError

TEXTS = [ask for asks in TOPICS.values() for ask in asks][:6]
POOLINGS = ("cls", "mean", "last")


def pools(base: Path, **modes: bool) -> Path:
    """Writes what sentence-transformers stores beside a base."""
    (base / "1_Pooling").mkdir(exist_ok=True)
    said = {f"pooling_mode_{mode}": value for mode, value in modes.items()}
    content = json.dumps({"word_embedding_dimension": 32, "include_prompt": True, **said})
    (base / "1_Pooling" / "config.json").write_text(content)
    return base


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    folder = tmp_path_factory.mktemp("pooling")
    base = pools(shutil.copytree(encoder_base, folder / "base"), cls_token=True, mean_tokens=False)
    ensemble = recipe_content()["ensembles"][0] | {
        "template": "{text}",
        "verbalizers": {},
        "candidates": [],
        "defaults": {"epochs": 1, "batch_size": 16, "rank": 4},
    }
    ensemble["members"] = [
        {"name": "own", "seed": 1},
        {"name": "mean", "seed": 2, "pooling": "mean"},
        {"name": "last", "seed": 3, "pooling": "last"},
    ]
    source = {"kind": "encoder", "path": str(base)}
    return train(write_recipe(folder, base=source, ensembles=[ensemble]), folder / "bundle")


def test_members_answer_by_the_vector_that_they_were_trained_on(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("topics")
    found = OfflineMembers(bundle, ensemble).outputs(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
    for member, pooling, answered in zip(ensemble.members, POOLINGS, found, strict=True):
        folder = bundle.adapter_dir(member.adapters[0])
        with safe_open(folder / "head.safetensors", "pt") as file:
            assert file.metadata().get("pooling", "mean") == pooling
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(bundle.base_source), folder)
        head = load_file(folder / "head.safetensors")
        with torch.no_grad():
            rows = [model.eval()(**tokenizer(text, return_tensors="pt")) for text in TEXTS]
            states = [row.last_hidden_state[0] for row in rows]
            vectors = {
                "cls": [each[0] for each in states],
                "mean": [each.mean(0) for each in states],
                "last": [each[-1] for each in states],
            }[pooling]
            unit = torch.nn.functional.normalize(torch.stack(vectors), dim=-1)
            expected = (unit @ head["weight"].T + head["bias"]).double().softmax(-1)
        np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_a_bundles_copy_of_the_base_still_says_how_it_pools(bundle: Bundle) -> None:
    assert bundle.base_folder is not None
    assert read_pooling(bundle.base_folder) == "cls"


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"cls_token": True}, "cls"),
        ({"mean_tokens": True, "cls_token": False}, "mean"),
        ({"lasttoken": True}, "last"),
        ({"max_tokens": True}, "mean"),
        ({"mean_tokens": True, "cls_token": True}, "mean"),
        ({}, "mean"),
    ],
)
def test_a_base_says_how_it_pools(tmp_path: Path, modes: dict[str, bool], expected: str) -> None:
    assert read_pooling(pools(tmp_path, **modes)) == expected


def test_a_causal_base_is_read_at_its_last_token_alone(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    ensemble: dict[str, Any] = recipe_content()["ensembles"][0]
    ensemble |= {"template": "{text}", "verbalizers": {}, "candidates": []}
    ensemble["members"] = [{"name": "a", "seed": 1, "pooling": "cls"}, {"name": "b", "seed": 2}]
    base = {"kind": "causal", "answers": "heads", "path": causal_bundle.base_source}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    with pytest.raises(RecipeError, match="topics/a: pooling is cls, but over a causal base"):
        train(recipe, tmp_path / "bundle")
