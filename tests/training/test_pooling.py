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

from serve.base.folder import BaseError
from serve.base.side_files import read_pooling
from serve.bundle import Bundle
from tests.training.conftest import TOPICS, recipe_content
from training.evaluation.bases import compare_bases
from training.evaluation.probe_rows import ProbeRows
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError
from training.stages.base import Base
from training.stages.encoder import pool

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
        ({}, "mean"),
    ],
)
def test_a_base_says_how_it_pools(tmp_path: Path, modes: dict[str, bool], expected: str) -> None:
    assert read_pooling(pools(tmp_path, **modes)) == expected


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_sentence_transformers_writes_today_is_read(tmp_path: Path, pooling: str) -> None:
    """The vector that is read is the one that sentence-transformers itself pools."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    own = Pooling(64, {"last": "lasttoken"}.get(pooling, pooling))
    (tmp_path / "1_Pooling").mkdir()
    own.save(str(tmp_path / "1_Pooling"))
    found = read_pooling(tmp_path)
    assert found == pooling
    states, mask = torch.randn(2, 5, 64), torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    expected = own({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(pool(states, mask, False, found), expected)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["mean", "cls"]}, "mean and cls"),
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "cls_token and mean_tokens",
        ),
    ],
)
def test_a_base_that_pools_as_no_head_reads_is_refused_by_name(
    encoder_base: Path,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    said: dict[str, Any],
    named: str,
) -> None:
    base = shutil.copytree(encoder_base, tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps(said))
    message = f"pools by {named}, which is not served; expected mean, cls or lasttoken alone"
    with pytest.raises(BaseError, match=message):
        read_pooling(base)
    given = Base(base, "encoder", "base", by_heads=True)
    with pytest.raises(RecipeError, match=f"{message}. Say `pooling: mean`"):
        assert given.pooling
    with pytest.raises(RecipeError, match=message):
        compare_bases([str(base)], ProbeRows("rows", "label", [], [], "{text}"))


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
