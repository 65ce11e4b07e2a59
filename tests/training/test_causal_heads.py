"""Members that answer by heads on a causal base: their training, and their entries in the bundle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.bundle import Bundle
from serve.pack import pack
from tests.serve import tiny
from tests.training.conftest import TOPICS, recipe_content
from training.evaluation.evaluation import evaluate_bundle
from training.offline.members import OfflineMembers
from training.pipeline import train

TEXTS = [ask for asks in TOPICS.values() for ask in asks]


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    write_recipe: Callable[..., Path],
    causal_bundle: Bundle,
) -> Bundle:
    folder = tmp_path_factory.mktemp("causal-heads")
    ensemble = recipe_content()["ensembles"][0] | {"template": "{text}", "verbalizers": {}}
    ensemble["defaults"] = {"epochs": 4, "batch_size": 16, "rank": 4, "learning_rate": 0.01}
    ensemble["members"] = [
        {"name": "a", "seed": 1, "normalize": False, "head": "random"},
        {"name": "b", "seed": 2, "normalize": False},
        {"name": "c", "seed": 3},
    ]
    base = {"kind": "causal", "answers": "heads", "path": causal_bundle.base_source}
    return train(write_recipe(folder, base=base, ensembles=[ensemble]), folder / "bundle")


def test_a_causal_base_that_heads_read_is_an_encoder_to_its_bundle(bundle: Bundle) -> None:
    written = json.loads((bundle.path / "bundle.json").read_text())
    assert written["base"] == {"path": "base", "kind": "encoder"}
    assert bundle.verify() == []
    config = json.loads(
        next(bundle.path.glob("adapters/topics-a/*/adapter_config.json")).read_text()
    )
    assert "lm_head" not in config["target_modules"]


def test_members_answer_what_sequence_classification_of_transformers_does(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("topics")
    probabilities = OfflineMembers(bundle, ensemble).outputs(TEXTS)
    for member, answered in zip(ensemble.members[:2], probabilities, strict=False):
        folder = bundle.adapter_dir(member.adapters[0])
        reference = tiny.ClassifierReference(Path(bundle.base_source), folder)
        expected = [reference.probabilities(text) for text in TEXTS]
        np.testing.assert_allclose(answered, expected, atol=1e-5)


def test_they_learn(bundle: Bundle) -> None:
    metrics = json.loads((bundle.path / "report" / "metrics.json").read_text())
    [test] = [each for each in metrics["reports"] if each["data"] == "test"]
    accuracy = {row["name"]: row["scores"]["accuracy"] for row in test["rows"]}
    assert min(accuracy[name] for name in "bc") > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pefts_own_sequence_classifiers_are_evaluated_as_they_are_served(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny.causal_base(tmp_path / "base")
    adapters = {}
    for seed, name in enumerate("ab", 1):
        adapters[name] = tiny.classifier(base, tmp_path / name, labels=3, seed=seed)
        weights = adapters[name] / "adapter_model.safetensors"
        save_file({key: value.to(dtype) for key, value in load_file(weights).items()}, weights)
    labels = list(TOPICS)
    packed = pack(
        str(base),
        adapters,
        tmp_path / "bundle",
        task="classification",
        fusion="average",
        labels=labels,
    )
    found = OfflineMembers(packed, packed.ensemble("ensemble")).outputs(TEXTS)
    for folder, answered in zip(adapters.values(), found, strict=True):
        reference = tiny.ClassifierReference(base, folder)
        np.testing.assert_allclose(
            answered, [reference.probabilities(text) for text in TEXTS], atol=1e-5
        )
    rows = tmp_path / "rows.csv"
    right = [labels[place] for place in found.mean(0).argmax(1)]
    lines = [f"{text},{label}" for text, label in zip(TEXTS, right, strict=True)]
    rows.write_text("\n".join(["text,label", *lines]))
    evaluate_bundle(packed.path, "ensemble", rows, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    [average] = [row for row in report["rows"] if row["name"] == "average"]
    assert average["scores"]["accuracy"] == 1
