"""A whole run over an Idefics3 from nothing: from images and a recipe to a bundle, against transformers and PEFT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from serve.bundle import Bundle
from serve.images.decode import decode
from serve.images.limits import ImageLimits
from serve.manifest import Ensemble
from tests.serve import seeing
from training.evaluation.evaluation import evaluate_bundle
from training.execution.held_rows import kept
from training.execution.run import WORK
from training.merging.lora import Recipe
from training.merging.merge import merge_ensemble
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import RecipeError, load_recipe

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
TEMPLATE = "User: {image}{text}\nAssistant:"


def write_rows(folder: Path, name: str, count: int, seed: int) -> None:
    """Noisy squares of three colours. Two questions are asked about them: their colour and their shape."""
    random = np.random.default_rng(seed)
    lines = ["photo,asks,says"]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        noise = random.integers(-30, 31, (20, 20, 3))
        pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
        file = f"pictures/{name}-{number}.png"
        Image.fromarray(pixels).save(folder / file)
        lines.append(f"{file},shape?,square" if number % 4 == 0 else f"{file},colour?,{colour}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def content(**changes: Any) -> dict[str, Any]:
    scratch = {
        "architecture": "idefics3",
        "hidden": 64,
        "layers": 1,
        "heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "vocabulary": 300,
        "context": 64,
        "documents": ["User: {photo}{asks}\nAssistant: {says}"],
        "epochs": 16,
        "batch_size": 16,
        "learning_rate": 5e-3,
    }
    options = {"epochs": 1, "batch_size": 16, "rank": 2, "learning_rate": 0.002}
    return {
        "name": "squares",
        "seed": 3,
        "precision": "float32",
        "base": {"kind": "causal", "scratch": scratch},
        "data": {
            "train": "train.csv",
            "test": "test.csv",
            "image": "photo",
            "image_text": "asks",
            "validation_fraction": 0.2,
        },
        "ensembles": [
            {
                "name": "labels",
                "task": "classification",
                "label": "says",
                "template": TEMPLATE,
                "label_scoring": "mean",
                "defaults": options,
                "golden": 2,
                "members": [
                    {"name": "a", "seed": 1},
                    {"name": "b", "seed": 2, "targets": ["vision", "connector"]},
                ],
            },
            {
                "name": "written",
                "task": "generation",
                "target": "says",
                "template": TEMPLATE,
                "max_new_tokens": 4,
                "evaluation_rows": 12,
                "defaults": options,
                "members": [{"name": "a", "seed": 1, "targets": "all", "layers": 1}],
            },
        ],
        **changes,
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("squares")
    write_rows(folder, "train", 96, 1)
    write_rows(folder, "test", 24, 2)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content()))
    return train(folder / "recipe.yaml", folder / "bundle")


def test_the_bundle_can_be_served(bundle: Bundle) -> None:
    assert bundle.verify() == []
    assert bundle.base_kind() == "causal"
    model = AutoModelForImageTextToText.from_pretrained(bundle.base_source)
    assert type(model).__name__ == "Idefics3ForConditionalGeneration"


def test_the_bases_chat_is_its_documents_form(bundle: Bundle) -> None:
    processor = AutoProcessor.from_pretrained(bundle.base_source)
    says = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colour?"}]}]
    chat = processor.apply_chat_template(says, add_generation_prompt=True)
    assert chat == "User: <image>colour?\nAssistant:"


def test_a_member_adapts_the_parts_that_it_names_and_the_language_model_by_default(
    bundle: Bundle,
) -> None:
    parts = {}
    for ensemble in ("labels", "written"):
        for member in bundle.ensemble(ensemble).members:
            folder = bundle.adapter_dir(member.adapters[0])
            with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
                names = list(file.keys())
            parts[ensemble, member.name] = {name.split(".")[3] for name in names}
    assert parts["labels", "a"] == {"text_model"}
    assert parts["labels", "b"] == {"vision_model", "connector"}
    assert parts["written", "a"] == {"vision_model", "text_model"}  # a connector has no layers


def asked(bundle: Bundle, count: int) -> tuple[list[str], list[tuple[str, list[Image.Image]]]]:
    """Some test rows as members read them, and as transformers' processor reads them."""
    rows = kept(bundle.path / WORK, "test")
    assert rows is not None
    urls, questions = list(rows["photo"])[:count], list(rows["asks"])[:count]
    form = TEMPLATE.replace("{image}", "<image>")
    given = [
        (form.replace("{text}", question), [decode(url, ImageLimits())])
        for url, question in zip(urls, questions, strict=True)
    ]
    return [f"{url}\n{question}" for url, question in zip(urls, questions, strict=True)], given


def test_members_answer_as_peft_does(bundle: Bundle) -> None:
    cells, given = asked(bundle, 4)
    labels = bundle.ensemble("labels")
    texts = [f" {label}" for label in labels.labels or []]
    found = OfflineMembers(bundle, labels).outputs(cells)
    for member, own in zip(labels.members, found, strict=True):
        folder = bundle.adapter_dir(member.adapters[0])
        peft = seeing.Reference(Path(bundle.base_source), folder)
        expected = [peft.probabilities(*each, texts) for each in given]
        np.testing.assert_allclose(own, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["labels", "written"])
def test_it_has_learned_what_is_asked_of_the_images(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    """On the rows that the run kept, and on the same rows as files: the figures are the same."""
    figures = []
    for data in (None, bundle.path.parent / "test.csv"):
        evaluate_bundle(bundle.path, name, data, tmp_path / "report.json")
        report = json.loads((tmp_path / "report.json").read_text())
        [average] = [row["scores"] for row in report["rows"] if row["name"] == "average"]
        figures.append(average)
    if name == "labels":  # of generation, the recipe asks for 12 of the test rows
        assert figures[0] == figures[1]
    assert figures[0]["accuracy" if name == "labels" else "exact_match"] > 0.9


def test_golden_inputs_are_images_with_their_question(bundle: Bundle) -> None:
    labels = bundle.ensemble("labels")
    assert len(labels.golden) == 2
    for golden in labels.golden:
        assert isinstance(golden.input, dict)
        image = golden.input["image"]
        cell = f"{image}\n{golden.input['text']}"
        [[said]] = OfflineMembers(bundle, labels).outputs([cell]).mean(axis=0, keepdims=True)
        assert (labels.labels or [])[int(said.argmax())] == golden.label


@pytest.mark.slow
def test_the_stages_of_a_base_of_your_own_keep_how_it_reads_images(
    bundle: Bundle, tmp_path: Path
) -> None:
    write_rows(tmp_path, "train", 48, 1)
    stages = [
        {"kind": "pretraining", "documents": ["User: {photo}{asks}\nAssistant: {says}"]},
        {"kind": "fine_tuning", "ensembles": ["labels"], "epochs": 1},
    ]
    stages[0]["epochs"] = 1
    base = {"kind": "causal", "path": bundle.base_source, "stages": stages}
    data = {k: v for k, v in content()["data"].items() if k != "test"}
    file = tmp_path / "recipe.yaml"
    file.write_text(
        yaml.safe_dump(content(base=base, data=data, ensembles=content()["ensembles"][:1]))
    )
    made = train(file, tmp_path / "bundle")
    assert made.verify() == []
    before, after = (
        load_file(Path(each.base_source) / "model.safetensors") for each in (bundle, made)
    )
    changed = {name.split(".")[1] for name in before if not (before[name] == after[name]).all()}
    assert {"vision_model", "text_model", "connector"} <= changed
    rows = kept(made.path / WORK, "validation")
    assert rows is not None
    cells = [f"{url}\n{text}" for url, text in zip(rows["photo"], rows["asks"], strict=True)]
    assert OfflineMembers(made, made.ensemble("labels")).outputs(cells).shape[2] == 4


def ensembles(number: int, **changes: Any) -> dict[str, Any]:
    return {"ensembles": [content()["ensembles"][number] | changes]}


def scratch(**changes: Any) -> dict[str, Any]:
    return {"base": {"kind": "causal", "scratch": content()["base"]["scratch"] | changes}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": "train.csv"}}, "name their column in data.image"),
        (scratch(documents=["it says {says}"]), r"write \{photo\} where it stands"),
        (scratch(documents=["{photo} {photo}"]), r"names \{photo\} twice"),
        (scratch(patch_size=16), "image_size / patch_size must be even"),
        (scratch(objective="masked"), "idefics3 is trained autoregressive"),
        (scratch(architecture="llama"), "data.image needs a base that reads images"),
        (
            {"base": {"kind": "causal", "path": "x", "answers": "heads"}},
            "heads over a causal base read texts alone",
        ),
        (ensembles(0, template="{image}:"), r"data.image_text needs \{text\} in the template"),
        (ensembles(0, template="{image}{image}{text}"), "one image"),
        (ensembles(1, golden=1), "golden inputs with images are asked in chats"),
        (
            ensembles(0, members=[{"name": "a", "kind": "prefix"}]),
            "labels/a: prefix is not trained over images; use lora",
        ),
        (
            ensembles(0, members=[{"name": "a", "kind": "alora"}]),
            "labels/a: alora is not trained over images",
        ),
        (
            {
                "data": {"train": "train.csv", "image": "photo", "text_pair": "asks"},
            },
            "leave text_pair out",
        ),
        ({"data": {"train": "train.csv", "image_text": "asks"}}, "image_text stands beside"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(**changes)))
    with pytest.raises(RecipeError, match=words):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_place_for_an_image_needs_images(tmp_path: Path) -> None:
    base = {"kind": "causal", "scratch": {"architecture": "llama", "documents": ["{asks}"]}}
    data = {"train": "train.csv", "text": "asks"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(base=base, data=data)))
    with pytest.raises(RecipeError, match="the template has a place for an image"):
        load_recipe(tmp_path / "recipe.yaml")


def test_members_of_different_parts_are_merged_exactly(bundle: Bundle, tmp_path: Path) -> None:
    """One member changes the language model, the other tower and connector: `cat` is half of both updates."""
    merged = merge_ensemble(bundle, "labels", Recipe("cat"))
    ensemble = Ensemble.model_validate_json(merged.file.read_text())
    cells, given = asked(bundle, 2)
    [found] = OfflineMembers(bundle, ensemble).outputs(cells)
    model = AutoModelForImageTextToText.from_pretrained(bundle.base_source)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for member in bundle.ensemble("labels").members:
        base = AutoModelForImageTextToText.from_pretrained(bundle.base_source)
        folder = bundle.adapter_dir(member.adapters[0])
        own = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
        for key, value in model.state_dict().items():
            weights[key] += (own[key] - value) / 2
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(bundle.base_source).save_pretrained(tmp_path)
    texts = [f" {label}" for label in ensemble.labels or []]
    peft = seeing.Reference(tmp_path, None)
    expected = [peft.probabilities(*each, texts) for each in given]
    np.testing.assert_allclose(found, expected, atol=1e-4)
