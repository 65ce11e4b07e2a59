"""LoRAs on one part of a base that reads images: the pattern hits this part alone, and what engines serve."""

import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from serve.adapter import inspect_adapter
from tests.serve import seeing, towers
from training.recipe import LoraStage, RecipeError
from training.stages.towers.targets import part_depth, part_pattern

FAMILIES = ("clip", "siglip")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.base(request.param, tmp_path_factory.mktemp("towers") / "base")


def adapted(base: Path, tower: Any, **options: Any) -> list[str]:
    """The modules to which PEFT adds a LoRA."""
    model = AutoModel.from_pretrained(base)
    pattern = part_pattern(model, LoraStage(**options), tower, "a")
    whole = get_peft_model(model, LoraConfig(r=2, target_modules=pattern))
    return sorted(
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in whole.named_modules()
        if name.endswith(".lora_A")
    )


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_one_tower_alone_is_hit_with_its_projection(base: Path, tower: str) -> None:
    found = adapted(base, tower)
    other = {"vision": "text_", "text": "vis"}[tower]
    assert not [name for name in found if name.startswith(other)]
    layers = [name for name in found if ".layers." in name]
    assert len(layers) == 2 * 6
    projections = set(found) - set(layers)
    expected = {
        ("clip", "vision"): {"visual_projection"},
        ("clip", "text"): {"text_projection"},
        ("siglip", "vision"): {"vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"},
        ("siglip", "text"): {"text_model.head"},
    }
    assert projections == expected[AutoConfig.from_pretrained(base).model_type, tower]


def test_both_is_the_sum_of_the_two(base: Path) -> None:
    assert adapted(base, "both") == sorted(adapted(base, "vision") + adapted(base, "text"))


def test_names_and_layers_are_kept_within_the_tower(base: Path) -> None:
    found = adapted(base, "vision", target_modules=["q_proj", "v_proj"], layers=1)
    assert [re.sub(r".*\.layers\.", "", name) for name in found] == [
        "0.self_attn.q_proj",
        "0.self_attn.v_proj",
    ]
    assert all(name.startswith("vision_model.") for name in found)


def test_names_that_the_tower_lacks_are_refused(base: Path) -> None:
    model = AutoModel.from_pretrained(base)
    with pytest.raises(RecipeError, match=r"member 'a': no linear module of the targets 'text'"):
        part_pattern(model, LoraStage(target_modules=["visual_projection"]), "text", "a")


def test_the_adapter_is_one_that_is_served(base: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(base)
    pattern = part_pattern(model, LoraStage(), "both", "a")
    folder = towers.lora(base, tmp_path / "a", pattern, seed=1, rank=2)
    info = inspect_adapter(folder, base=base, base_kind="encoder", head_rows=3)
    assert len(info.target_modules) == len(adapted(base, "both"))


PREFIXES = {
    "idefics3": {
        "vision": "model.vision_model.",
        "connector": "model.connector.",
        "language": "model.text_model.",
    },
    "llava": {
        "vision": "model.vision_tower.",
        "connector": "model.multi_modal_projector.",
        "language": "model.language_model.",
    },
}


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def writes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("writes") / "base"
    base = seeing.base(request.param, folder, published=False)
    return AutoModelForImageTextToText.from_pretrained(base)


def hit(model: Any, targets: Any, **options: Any) -> set[str]:
    pattern = part_pattern(model, LoraStage(**options), targets, "a")
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


def test_each_part_of_a_base_that_writes_is_hit_alone(writes: Any) -> None:
    prefixes = PREFIXES[writes.config.model_type]
    parts = {part: hit(writes, part) for part in prefixes}
    for part, names in parts.items():
        assert names
        assert all(name.startswith(prefixes[part]) for name in names)
    assert hit(writes, "all") == set.union(*parts.values())
    assert hit(writes, ["vision", "connector"]) == parts["vision"] | parts["connector"]
    assert "lm_head" not in hit(writes, "all")
    attention = hit(writes, "language", target_modules=["q_proj", "v_proj"], layers=1)
    assert {name.removeprefix(prefixes["language"]) for name in attention} == {
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.v_proj",
    }
    assert part_depth(writes, "language", "a") == 2


def test_a_part_that_the_base_lacks_is_refused(writes: Any) -> None:
    with pytest.raises(RecipeError, match="no part 'text' for targets; it has vision, connector"):
        part_pattern(writes, LoraStage(), "text", "a")
