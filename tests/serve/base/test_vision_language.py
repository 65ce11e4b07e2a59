"""Models that write about images, as bases: how the engine is started, and which adapters fit. No engine starts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serve.adapter import AdapterError, inspect_adapter, plain_adapter
from serve.base.architectures import served_as, unserved_base
from serve.base.folder import BaseShapes, kind_of, read_config
from serve.base.vision_language import is_read, lora_on_images
from serve.engine.vllm_hooks.given import EngineSettingError
from serve.manifest import Ensemble
from serve.servable import unserved_over
from tests.serve import seeing
from tests.serve.manifests import manifest

FAMILIES = ("idefics3", "llava", "llava of transformers 5", "llava-siglip")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, _, new = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("seeing") / "base"
    return family, seeing.base(family, folder, published=not new)


def arguments(base: Path, **given: Any) -> Any:
    from serve.engine.vllm_hooks.arguments import engine_args

    return engine_args(
        model=str(base),
        revision=None,
        kind="causal",
        dtype="float32",
        adapter_slots=3,
        host_adapters=3,
        max_lora_rank=8,
        given=given,
    )


def test_they_are_causal_bases_that_are_served(made: Any) -> None:
    family, base = made
    config = read_config(base)
    assert kind_of(config) == "causal"
    assert unserved_base(config, "causal") is None
    assert served_as(config) == (None if family == "idefics3" else "ChoirLlava")


def test_an_adapter_on_any_part_is_taken_as_peft_names_it(made: Any, tmp_path: Path) -> None:
    """Published LLaVAs name the layers of their tower in another way than transformers 5."""
    family, base = made
    for name, targets in seeing.TARGETS[family].items():
        folder = seeing.lora(base, tmp_path / name, targets, seed=1, rank=4)
        info = inspect_adapter(folder, base=base, base_kind="causal", head_rows=0)
        assert info.target_modules
        unread = [each for each in info.target_modules if re.search(r"layers\.2\.|\.head\.", each)]
        assert bool(unread) is (family != "idefics3" and name in ("tower", "both"))
        with plain_adapter(folder, BaseShapes.read(base), "causal") as plain:
            assert (plain == folder) is not bool(unread)
            left = inspect_adapter(plain, base=base, base_kind="causal", head_rows=0)
        assert {*left.target_modules} == {*info.target_modules} - {*unread}


def test_an_adapter_of_what_is_never_asked_is_refused(tmp_path: Path) -> None:
    """A LLaVA takes an image from the last layer of its tower but one."""
    base = seeing.base("llava", tmp_path / "base")
    folder = seeing.lora(base, tmp_path / "last", r".*layers\.2\..*fc1", seed=1, rank=4)
    with pytest.raises(AdapterError, match=r"layers\.2\.mlp\.fc1' alone, and no answer depends"):
        inspect_adapter(folder, base=base, base_kind="causal", head_rows=0)


@pytest.mark.parametrize(("layer", "read"), [(-1, 3), (-2, 2), (1, 1), ([-3, -1], 3), (None, 2)])
def test_which_layers_of_a_tower_are_read(layer: Any, read: int) -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": {"num_hidden_layers": 3},
        **({} if layer is None else {"vision_feature_layer": layer}),
    }
    for name in ("model.vision_tower.encoder", "vision_tower.vision_model.encoder"):
        found = [is_read(config, f"{name}.layers.{each}.mlp.fc1") for each in range(3)]
        assert found == [each < read for each in range(3)]
    assert not is_read(config, "vision_tower.vision_model.head.mlp.fc1")
    assert is_read(config, "model.language_model.layers.2.mlp.up_proj")


def test_an_adapter_of_another_size_of_tower_is_refused(made: Any, tmp_path: Path) -> None:
    """The name of the tower's layers leads to the tower's weights, not to the language model's."""
    from safetensors.torch import load_file, save_file

    family, base = made
    targets = seeing.TARGETS[family]["tower"]
    folder = seeing.lora(base, tmp_path / "odd", targets, seed=1, rank=4)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(each for each in tensors if each.endswith("q_proj.lora_A.weight"))
    tensors[name] = tensors[name].repeat(1, 2)
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=r"maps 128 to 64 values, the base 64 to 64"):
        inspect_adapter(folder, base=base, base_kind="causal", head_rows=0)


@pytest.mark.engine
def test_images_go_with_each_request_and_loras_may_change_them(made: Any) -> None:
    _, base = made
    args = arguments(base)
    assert args.mm_processor_cache_gb == 0
    assert args.limit_mm_per_prompt == {"image": 8}
    assert args.enable_tower_connector_lora
    assert not arguments(base, enable_tower_connector_lora=False).enable_tower_connector_lora
    assert arguments(base, limit_mm_per_prompt={"image": 2}).limit_mm_per_prompt == {"image": 2}
    with pytest.raises(EngineSettingError, match="mm_processor_cache_gb must be 0"):
        arguments(base, mm_processor_cache_gb=4)


@pytest.mark.parametrize(
    ("architecture", "tower", "known"),
    [
        ("Idefics3ForConditionalGeneration", "idefics3_vision", True),
        ("LlavaForConditionalGeneration", "clip_vision_model", True),
        ("LlavaForConditionalGeneration", "siglip_vision_model", True),
        ("LlavaForConditionalGeneration", None, True),
        ("LlavaForConditionalGeneration", "pixtral", False),
        ("Qwen2VLForConditionalGeneration", None, False),
    ],
)
def test_loras_on_images_are_served_where_an_images_rows_are_known(
    architecture: str, tower: str | None, known: bool
) -> None:
    vision = {} if tower is None else {"model_type": tower}
    assert lora_on_images({"architectures": [architecture], "vision_config": vision}) is known


@pytest.mark.engine
def test_loras_on_images_are_refused_where_nobody_has_compared_them(tmp_path: Path) -> None:
    """Where vLLM counts an image's rows wrongly, all members answer wrongly."""
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 2},
    }
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    assert not arguments(folder).enable_tower_connector_lora
    with pytest.raises(EngineSettingError, match="must not be true over this base"):
        arguments(folder, enable_tower_connector_lora=True)


@pytest.mark.engine
def test_the_rows_of_an_image_are_counted_as_the_tower_sees_them() -> None:
    """By the strategy "default" one more than tokens come out: a CLIP's CLS, or a SigLIP's first patch."""
    from types import SimpleNamespace

    from serve.engine.vllm_hooks.llava import Llava

    def rows(kind: str, strategy: str, embeds: int) -> tuple[int, int]:
        vision = SimpleNamespace(model_type=kind, image_size=32, patch_size=8)
        config = SimpleNamespace(vision_config=vision, vision_feature_select_strategy=strategy)
        model: Any = SimpleNamespace(config=config)
        return Llava.get_mm_lora_token_counts(
            model, modality="image", mm_kwargs=None, num_mm_embeds=embeds
        )

    assert rows("clip_vision_model", "default", 16) == (17, 16)
    assert rows("clip_vision_model", "default", 48) == (51, 48)
    assert rows("clip_vision_model", "full", 17) == (17, 17)
    assert rows("siglip_vision_model", "default", 15) == (16, 15)
    assert rows("siglip_vision_model", "default", 45) == (48, 45)
    assert rows("siglip_vision_model", "full", 16) == (16, 16)


@pytest.mark.parametrize(
    ("template", "config", "served"),
    [
        ("{image} {text}", {"architectures": ["LlamaForCausalLM"]}, False),
        ("{text}", {"architectures": ["LlamaForCausalLM"]}, True),
        (
            "{image} is",
            {"architectures": ["Idefics3ForConditionalGeneration"], "vision_config": {}},
            True,
        ),
    ],
)
def test_a_template_with_an_image_needs_a_base_that_reads_it(
    template: str, config: dict[str, Any], served: bool
) -> None:
    ensemble = Ensemble.model_validate(manifest(template=template))
    reason = unserved_over(ensemble, config)
    assert (reason is None) is served
    assert served or "the base writes about no images" in str(reason)
