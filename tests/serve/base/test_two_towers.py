"""CLIP and SigLIP as bases: which of them are served, and which adapters fit them. No engine starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from serve.adapter import AdapterError, inspect_adapter, plain_adapter
from serve.base.architectures import served_as, unserved_base
from serve.base.folder import BaseShapes, kind_of
from serve.base.two_towers import vllm_overrides
from serve.bundle import BundleError
from serve.pack import pack
from tests.serve import tiny, towers

CLIP = {"model_type": "clip", "architectures": ["CLIPModel"]}
SIGLIP = {"model_type": "siglip", "architectures": ["SiglipModel"]}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.base(family, tmp_path_factory.mktemp("towers") / family)  # type: ignore[arg-type]


def adapter(base: Path, folder: Path, targets: Any) -> Path:
    return towers.lora(base, folder, targets, seed=1, rank=4)


@pytest.mark.parametrize("config", [CLIP, SIGLIP])
def test_published_ones_are_encoders_that_are_served(config: dict[str, Any]) -> None:
    assert kind_of(config) == "encoder"
    assert unserved_base(config, "encoder") is None
    assert served_as(config) in ("ChoirCLIP", "ChoirSiglip")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**CLIP, "projection_dim": 256}, r"256 values .* text layers \(512\)"),
        ({**CLIP, "architectures": ["CLIPVisionModel"]}, "as CLIPVisionModel"),
        ({**SIGLIP, "vision_config": {"vision_use_head": False}}, "without the head"),
        ({**SIGLIP, "vision_config": {"hidden_size": 1152}}, "differ in width"),
    ],
)
def test_others_are_refused_with_the_reason(config: dict[str, Any], reason: str) -> None:
    found = unserved_base(config, "encoder")
    with pytest.raises(AssertionError, match=reason):
        assert found is None, found


def test_vllm_is_told_the_width_of_a_clips_vectors() -> None:
    """It reads `projection_dim` of the text layers, and transformers that of the whole."""
    config = {**CLIP, "projection_dim": 1024, "text_config": {"projection_dim": 512}}
    assert vllm_overrides(config) == {"text_config": {"projection_dim": 1024}}
    assert vllm_overrides(SIGLIP) == {}


@pytest.mark.parametrize("name", ["vision", "text", "both"])
def test_an_adapter_is_taken_as_it_is(base: Path, family: str, tmp_path: Path, name: str) -> None:
    targets = towers.TARGETS[family][name]  # type: ignore[index]
    folder = adapter(base, tmp_path / name, targets)
    info = inspect_adapter(folder, base=base, base_kind="encoder", head_rows=3)
    assert info.head is not None
    assert info.head.hidden == BaseShapes.read(base).hidden
    with plain_adapter(folder, BaseShapes.read(base), "encoder") as plain:
        assert plain == folder


def test_a_head_must_be_as_wide_as_the_vectors_and_chooses_no_pooling(
    base: Path, tmp_path: Path
) -> None:
    folder = adapter(base, tmp_path / "a", ["q_proj"])
    head = load_file(folder / "head.safetensors")
    save_file(head, folder / "head.safetensors", metadata={"pooling": "cls"})
    with pytest.raises(AdapterError, match="leave 'pooling' out"):
        inspect_adapter(folder, base=base, base_kind="encoder")
    save_file({**head, "weight": head["weight"][:, :-1].copy()}, folder / "head.safetensors")
    with pytest.raises(AdapterError, match="head reads vectors of"):
        inspect_adapter(folder, base=base, base_kind="encoder")


@pytest.mark.parametrize("tower", ["Vision", "Text"])
def test_an_adapter_of_one_tower_alone_is_put_on_this_tower(
    base: Path, family: str, tmp_path: Path, tower: str
) -> None:
    """Both towers have layers of the same names, and PEFT notes which class was trained."""
    loader = {"clip": "CLIP", "siglip": "Siglip"}[family] + f"{tower}Model"
    model = getattr(transformers, loader).from_pretrained(base)
    folder = tmp_path / "alone"
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder)
    whole = adapter(base, tmp_path / "whole", ["q_proj"])
    shutil.copy(whole / "head.safetensors", folder)
    names = load_file(folder / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.encoder.") for name in names)
    info = inspect_adapter(folder, base=base, base_kind="encoder")
    assert info.target_modules
    assert all(each.startswith(f"{tower.lower()}_model.") for each in info.target_modules)
    with plain_adapter(folder, BaseShapes.read(base), "encoder") as plain:
        read = load_file(plain / "adapter_model.safetensors")
        stem, prefix = "base_model.model.", f"{tower.lower()}_model."
        assert {name.replace(stem, stem + prefix) for name in names} == set(read)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_mapping": None}))
    with pytest.raises(AdapterError, match=r"The base has no module 'encoder\."):
        inspect_adapter(folder, base=base, base_kind="encoder")


def test_what_takes_no_lora_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    for module in ("position_embedding", "patch_embedding"):
        folder = adapter(base, tmp_path / module, [module])
        with pytest.raises(AdapterError, match=module):
            inspect_adapter(folder, base=base, base_kind="encoder")


def test_a_bundle_is_packed(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "a", ["q_proj", "v_proj"])
    given: dict[str, Any] = {"task": "classification", "labels": ["x", "y", "z"]}
    bundle = pack(str(base), {"a": folder}, tmp_path / "bundle", fusion="average", **given)
    assert bundle.verify() == []


PROMPTED: dict[str, Any] = {
    "task": "classification",
    "fusion": "average",
    "labels": ["x", "y", "z"],
    "prompts": ["a photo of a {label}"],
}


def test_with_prompts_adapters_have_no_heads_and_the_base_alone_answers(
    base: Path, tmp_path: Path
) -> None:
    with_head = adapter(base, tmp_path / "head", ["q_proj"])
    plain = towers.lora(base, tmp_path / "plain", ["q_proj"], seed=1, rank=4, labels=None)
    with pytest.raises(BundleError, match="It has a head, and this ensemble classifies by its"):
        pack(str(base), {"a": with_head}, tmp_path / "one", **PROMPTED)
    bundle = pack(str(base), {"a": plain}, tmp_path / "two", **PROMPTED)
    assert (bundle.verify(), bundle.base_kind()) == ([], "encoder")
    alone = pack(str(base), {}, tmp_path / "three", **PROMPTED)
    (ensemble,) = alone.ensembles()
    assert [(each.name, each.adapters) for each in ensemble.members] == [("base", [])]


def test_prompts_are_refused_over_a_base_of_texts(tmp_path: Path) -> None:
    encoder = tiny.encoder_base(tmp_path / "bert")
    with pytest.raises(BundleError, match="needs a CLIP or a SigLIP as the base"):
        pack(str(encoder), {}, tmp_path / "bundle", **PROMPTED)
    causal = tiny.causal_base(tmp_path / "llama")
    with pytest.raises(BundleError, match="a base that writes gives none"):
        pack(str(causal), {}, tmp_path / "bundle", **PROMPTED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ["{label}", "a photo"]}, "texts with {label} in them"),
        ({"task": "multilabel"}, "and for classification"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        pack(str(base), {}, tmp_path / "bundle", **{**PROMPTED, **changes})


def test_the_processor_takes_the_smallest_images(base: Path) -> None:
    """Whatever the decoder lets through must not fail behind it."""
    processor = transformers.AutoProcessor.from_pretrained(base)
    for width, height in ((1, 1), (3, 3), (32, 1), (1, 32), (3, 40), (40, 3), (2, 64)):
        image = towers.pictures(1)[0].resize((width, height))
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        assert tuple(pixels.shape) == (1, 3, towers.SIDE, towers.SIDE)
