"""A whole run over images: from PNG files and a recipe to a bundle, against transformers and PEFT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.special import softmax
from transformers import AutoModel, AutoProcessor

from serve.bundle import Bundle, BundleError
from serve.images.decode import decode
from serve.images.limits import ImageLimits
from serve.manifest import Ensemble
from tests.serve import towers
from training.evaluation.evaluation import evaluate_bundle
from training.execution.held_rows import kept
from training.execution.run import WORK
from training.merging.lora import Recipe
from training.merging.merge import merge_ensemble
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError, load_recipe

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_rows(folder: Path, name: str, count: int, seed: int) -> None:
    """Noisy squares of three colours as PNG files, and a table that names them."""
    random = np.random.default_rng(seed)
    lines = ["image,label"]
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(count):
        label = list(COLOURS)[number % 3]
        noise = random.integers(-30, 31, (20, 20, 3))
        pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
        file = f"pictures/{name}-{number}.png"
        Image.fromarray(pixels).save(folder / file)
        lines.append(f"{file},{label}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def content(architecture: str = "clip", **changes: Any) -> dict[str, Any]:
    scratch = {
        "architecture": architecture,
        "hidden": 32,
        "layers": 1,
        "heads": 1,
        "image_size": 16,
        "patch_size": 8,
        "vocabulary": 300,
        "context": 32,
        "documents": ["a {label} square"],
        "epochs": 4,
        "batch_size": 16,
    }
    options = {"epochs": 3, "batch_size": 16, "rank": 2, "learning_rate": 0.01}
    return {
        "name": "colours",
        "seed": 3,
        "precision": "float32",
        "base": {"kind": "encoder", "scratch": scratch},
        "data": {
            "train": "train.csv",
            "test": "test.csv",
            "image": "image",
            "validation_fraction": 0.25,
        },
        "ensembles": [
            {
                "name": "colours",
                "task": "classification",
                "label": "label",
                "defaults": options,
                "members": [
                    {"name": "a", "seed": 1},
                    {"name": "b", "seed": 2, "targets": "both", "normalize": False},
                ],
            },
            {
                "name": "prompted",
                "task": "classification",
                "label": "label",
                "prompts": ["a {label} square", "{label}"],
                "defaults": options,
                "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2, "targets": "text"}],
            },
            {
                "name": "student",
                "task": "classification",
                "label": "label",
                "defaults": options,
                "members": [
                    {
                        "name": "a",
                        "stages": [
                            {"kind": "lora"},
                            {"kind": "distillation", "teacher": {"ensemble": "colours"}},
                        ],
                    }
                ],
            },
        ],
        **changes,
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("colours")
    write_rows(folder, "train", 72, 1)
    write_rows(folder, "test", 24, 2)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content()))
    return train(folder / "recipe.yaml", folder / "bundle")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("siglip")
    write_rows(folder, "train", 72, 1)
    write_rows(folder, "test", 24, 2)
    own = content("siglip")
    file = folder / "recipe.yaml"
    own["base"]["scratch"] |= {"epochs": 40, "learning_rate": 2e-3}
    file.write_text(yaml.safe_dump({**own, "ensembles": own["ensembles"][:2]}))
    return train(file, folder / "bundle")


def metadata(adapter: Path) -> dict[str, str]:
    with safe_open(adapter / "head.safetensors", "numpy") as file:
        return dict(file.metadata())


def test_the_bundle_can_be_served(bundle: Bundle) -> None:
    assert bundle.verify() == []
    assert bundle.base_kind() == "encoder"


def test_a_member_adapts_the_tower_that_reads_the_rows_unless_it_says_otherwise(
    bundle: Bundle,
) -> None:
    parts = {}
    for member in bundle.ensemble("colours").members:
        folder = bundle.adapter_dir(member.adapters[0])
        with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
            parts[member.name] = {name.split(".")[2] for name in file.keys()}  # noqa: SIM118
    assert parts["a"] == {"vision_model", "visual_projection"}
    assert parts["b"] == {"vision_model", "visual_projection", "text_model", "text_projection"}


def test_members_answer_as_peft_does(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("colours")
    rows = kept(bundle.path / WORK, "test")
    assert rows is not None
    urls = list(rows["image"])[:6]
    found = OfflineMembers(bundle, ensemble).outputs(urls)
    for member, own in zip(ensemble.members, found, strict=True):
        folder = bundle.adapter_dir(member.adapters[0])
        reference = towers.Reference(Path(bundle.base_source), folder)
        vectors = np.stack([reference.vector(decode(url, ImageLimits())).numpy() for url in urls])
        if metadata(folder)["normalize"] == "true":
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with safe_open(folder / "head.safetensors", "numpy") as head:
            scores = vectors @ head.get_tensor("weight").T + head.get_tensor("bias")
        np.testing.assert_allclose(own, softmax(scores, axis=1), atol=1e-5)


def test_members_without_heads_answer_by_the_scaled_cosines(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("prompted")
    rows = kept(bundle.path / WORK, "test")
    assert rows is not None
    assert ensemble.prompts == ["a {label} square", "{label}"]
    texts = [[f"a {label} square", label] for label in ensemble.labels or []]
    urls = list(rows["image"])[:6]
    found = OfflineMembers(bundle, ensemble).outputs(urls)
    for member, own in zip(ensemble.members, found, strict=True):
        folder = bundle.adapter_dir(member.adapters[0])
        assert not (folder / "head.safetensors").exists()
        reference = towers.Reference(Path(bundle.base_source), folder)
        expected = [reference.zero_shot(decode(url, ImageLimits()), texts) for url in urls]
        np.testing.assert_allclose(own, expected, atol=1e-5)


@pytest.mark.slow
def test_the_stages_of_a_base_of_your_own_keep_how_it_reads_images(
    bundle: Bundle, tmp_path: Path
) -> None:
    write_rows(tmp_path, "train", 48, 1)
    stages = [
        {"kind": "pretraining", "documents": ["a {label} square"], "epochs": 1},
        {"kind": "fine_tuning", "ensembles": ["prompted"], "epochs": 1, "layers": 1},
    ]
    base = {"kind": "encoder", "path": bundle.base_source, "stages": stages}
    prompted = content()["ensembles"][1]
    data = {"train": "train.csv", "image": "image", "validation_fraction": 0.25}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(base=base, data=data, ensembles=[prompted])))
    made = train(file, tmp_path / "bundle")
    assert made.verify() == []
    before, after = (
        load_file(Path(each.base_source) / "model.safetensors") for each in (bundle, made)
    )
    changed = {name.split(".")[0] for name in before if not (before[name] == after[name]).all()}
    assert {"vision_model", "text_model"} <= changed
    rows = kept(made.path / WORK, "validation")
    assert rows is not None
    outputs = OfflineMembers(made, made.ensemble("prompted")).outputs(list(rows["image"]))
    assert outputs.shape == (2, 12, 3)


@pytest.mark.parametrize("name", ["colours", "prompted"])
def test_merged_members_answer_as_peft_does(bundle: Bundle, name: str) -> None:
    """`cat` is the exact sum of the updates: of the members' heads too, where they read vectors alike."""
    if name == "colours":
        with pytest.raises(BundleError, match="read the base's vectors in different ways"):
            merge_ensemble(bundle, name, Recipe("cat"))
        return
    merged = merge_ensemble(bundle, name, Recipe("cat"))
    rows = kept(bundle.path / WORK, "test")
    assert rows is not None
    urls, ensemble = list(rows["image"])[:4], Ensemble.model_validate_json(merged.file.read_text())
    [found] = OfflineMembers(bundle, ensemble).outputs(urls)
    model = AutoModel.from_pretrained(bundle.base_source)
    weights = {key: value.double() for key, value in model.state_dict().items()}
    for member in bundle.ensemble(name).members:
        folder = bundle.adapter_dir(member.adapters[0])
        adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(bundle.base_source), folder)
        own = adapted.merge_and_unload().state_dict()
        for key, value in model.state_dict().items():
            weights[key] += (own[key].double() - value.double()) / 2
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    summed = bundle.path.parent / "summed"
    model.save_pretrained(summed)
    AutoProcessor.from_pretrained(bundle.base_source).save_pretrained(summed)
    texts = [[f"a {label} square", label] for label in ensemble.labels or []]
    reference = towers.Reference(summed, None)
    expected = [reference.zero_shot(decode(url, ImageLimits()), texts) for url in urls]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["colours", "prompted", "student"])
def test_it_has_learned_the_colours(bundle: Bundle, tmp_path: Path, name: str) -> None:
    """On the rows that the run kept, and on the same rows as files: the figures are the same."""
    figures = []
    for data in (None, bundle.path.parent / "test.csv"):
        evaluate_bundle(bundle.path, name, data, tmp_path / "report.json")
        report = json.loads((tmp_path / "report.json").read_text())
        [average] = [row["scores"] for row in report["rows"] if row["name"] == "average"]
        figures.append(average)
    assert figures[0] == figures[1]
    assert figures[0]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": "train.csv"}}, "name their column in data.image"),
        (
            {"data": {"train": "train.csv", "image": "image", "text_pair": "label"}},
            "leave text_pair out",
        ),
        (
            {"data": {"train": "train.csv", "image": "image", "clean": {"languages": ["en"]}}},
            "clean.languages and clean.label_errors read texts",
        ),
        ({"base": {"kind": "causal", "path": "x"}}, "prompted: prompts need a CLIP or a SigLIP"),
        (
            {"base": {"kind": "encoder", "scratch": {"architecture": "bert"}}},
            "a CLIP, a SigLIP, an Idefics3 or a LLaVA",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(**changes)))
    with pytest.raises(RecipeError, match=words):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_base_that_reads_texts_alone_is_refused(tmp_path: Path, encoder_base: Path) -> None:
    write_rows(tmp_path, "train", 9, 1)
    base = {"kind": "encoder", "path": str(encoder_base)}
    data = {"train": "train.csv", "image": "image", "validation_fraction": 0.3}
    for ensemble, words in zip(
        content()["ensembles"][:2],
        ("needs a base that reads images", "prompts need a base with two towers"),
        strict=True,
    ):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(content(base=base, data=data, ensembles=[ensemble])))
        with pytest.raises(RecipeError, match=words):
            train(file, tmp_path / ensemble["name"])


def test_targets_are_refused_over_a_base_with_one_tower(
    tmp_path: Path, encoder_base: Path, write_recipe: Callable[..., Path]
) -> None:
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "members": [{"name": "a", "targets": "vision"}],
    }
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path / "one", base=base, ensembles=[ensemble])
    with pytest.raises(RecipeError, match="targets names a part"):
        train(recipe, tmp_path / "bundle")


def test_a_pooling_is_refused_over_two_towers(bundle: Bundle, tmp_path: Path) -> None:
    write_rows(tmp_path, "train", 12, 1)
    ensemble = content()["ensembles"][0]
    ensemble["members"] = [{"name": "a", "pooling": "cls"}]
    base = {"kind": "encoder", "path": bundle.base_source}
    data = {"train": "train.csv", "image": "image", "validation_fraction": 0.25}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(base=base, data=data, ensembles=[ensemble])))
    with pytest.raises(RecipeError, match="leave out pooling"):
        train(file, tmp_path / "bundle")


@pytest.mark.slow
def test_a_siglip_from_nothing_learns_and_its_members_answer_as_peft_does(siglip: Bundle) -> None:
    assert siglip.verify() == []
    base = Path(siglip.base_source)
    rows = kept(siglip.path / WORK, "test")
    assert rows is not None
    urls, truth = list(rows["image"]), list(rows["label"])
    prompted = siglip.ensemble("prompted")
    texts = [[f"a {label} square", label] for label in prompted.labels or []]
    for ensemble in (siglip.ensemble("colours"), prompted):
        found = OfflineMembers(siglip, ensemble).outputs(urls)
        winners = [(ensemble.labels or [])[place] for place in found.mean(0).argmax(1)]
        assert np.mean([a == b for a, b in zip(winners, truth, strict=True)]) > 0.9
    for member, own in zip(prompted.members, found, strict=True):
        folder = siglip.adapter_dir(member.adapters[0])
        reference = towers.Reference(base, folder, context=32)
        expected = [reference.zero_shot(decode(url, ImageLimits()), texts) for url in urls[:6]]
        np.testing.assert_allclose(own[:6], expected, atol=1e-5)
