"""The files of a trained member."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from serve.bundle import Bundle
from tests.training.conftest import recipe_content
from training.offline.adapters import LoadedAdapters
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.recipe import PrefixStage, PromptStage, RecipeError
from training.stages.base import Base
from training.stages.soft import with_virtual_tokens


def test_an_adapter_is_lora_in_pefts_format_and_adds_alpha_over_rank_times_b_a(
    causal_bundle: Bundle,
) -> None:
    """The saved matrices, merged into the base by hand, answer like PEFT with the adapter."""
    ensemble = causal_bundle.ensemble("topics")
    alone = ensemble.model_copy(update={"members": ensemble.members[:1]})
    folder = causal_bundle.adapter_dir(ensemble.members[0].adapters[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(causal_bundle.base_source, dtype=torch.float32)
    changed = 0
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        module = base.get_submodule(
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        )
        module.weight.data += config["lora_alpha"] / config["r"] * (b @ a)
        changed += bool(b.any())
    assert changed == 2 * 7
    bare = alone.members[0].model_copy(update={"adapters": []})
    offline = OfflineMembers(causal_bundle, alone.model_copy(update={"members": [bare]}))
    offline._model = base
    offline._adapters = LoadedAdapters(base, {})
    texts = ["my card is lost", "the transfer is late"]
    expected = offline.outputs(texts)
    np.testing.assert_allclose(
        OfflineMembers(causal_bundle, alone).outputs(texts), expected, atol=1e-5
    )


def test_no_adapter_names_a_path_of_this_machine(
    causal_bundle: Bundle, encoder_bundle: Bundle
) -> None:
    for bundle in (causal_bundle, encoder_bundle):
        configs = list(bundle.path.glob("adapters/*/*/adapter_config.json"))
        assert configs
        for file in configs:
            assert "/" not in json.loads(file.read_text())["base_model_name_or_path"]


def test_members_differ_by_their_target_modules(causal_bundle: Bundle) -> None:
    first, second = (
        load_file(causal_bundle.adapter_dir(member.adapters[0]) / "adapter_model.safetensors")
        for member in causal_bundle.ensemble("topics").members
    )
    assert len(first) == 2 * 7 * 2
    assert len(second) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in second)


def test_an_encoders_pooler_gets_no_adapter(encoder_bundle: Bundle) -> None:
    for file in encoder_bundle.path.glob("adapters/*/*/adapter_model.safetensors"):
        names = list(load_file(file))
        assert any("intermediate.dense" in name for name in names)
        assert not any("pooler" in name for name in names)


def adapters(bundle: Bundle) -> dict[str, list[Path]]:
    """The adapters' folders of each member of `topics`."""
    return {
        member.name: [bundle.adapter_dir(ref) for ref in member.adapters]
        for member in bundle.ensemble("topics").members
    }


@pytest.mark.parametrize(
    ("member", "kind", "shape"),
    [
        # Virtual tokens x (layers x keys and values x key heads x head size), and x hidden.
        ("prefix", "PREFIX_TUNING", (5, 2 * 2 * 1 * 32)),
        ("projected", "PREFIX_TUNING", (3, 2 * 2 * 1 * 32)),
        ("prompt", "PROMPT_TUNING", (6, 64)),
        ("p-tuning", "P_TUNING", (4, 64)),
    ],
)
def test_virtual_tokens_are_saved_as_peft_does_without_what_made_them(
    soft_bundle: Bundle, member: str, kind: str, shape: tuple[int, int]
) -> None:
    [folder] = adapters(soft_bundle)[member]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == kind
    assert config["num_virtual_tokens"] == shape[0]
    assert "/" not in json.dumps(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "prompt_embeddings": shape
    }


def test_a_member_of_two_stages_has_both_adapters_in_order(soft_bundle: Bundle) -> None:
    found = [
        json.loads((folder / "adapter_config.json").read_text())["peft_type"]
        for folder in adapters(soft_bundle)["lora-prompt"]
    ]
    assert found == ["LORA", "PROMPT_TUNING"]
    names = [ref.adapter for ref in soft_bundle.ensemble("topics").members[5].adapters]
    assert names == ["topics-lora-prompt", "topics-lora-prompt-prompt"]


def test_a_candidate_of_two_stages_has_a_folder_for_each(soft_bundle: Bundle) -> None:
    folder = soft_bundle.path / "candidates" / "topics-both"
    assert sorted(path.name for path in folder.iterdir()) == ["1-lora", "2-prompt"]


def test_virtual_tokens_start_where_init_says(causal_bundle: Bundle) -> None:
    base = Base(Path(causal_bundle.base_source), "causal", "tiny", by_heads=False)
    tokenizer, model = base.tokenizer(), base.model()
    ids = tokenizer("my card")["input_ids"]
    prompt = PromptStage(virtual_tokens=2 * len(ids) + 1, init="my card")
    soft = with_virtual_tokens(model, prompt, tokenizer)
    expected = model.get_input_embeddings()(torch.tensor([*ids, *ids, ids[0]]))
    torch.testing.assert_close(soft.get_prompt_embedding_to_save("default"), expected)

    # A prefix that starts as a text answers as if the prompt began with the text.
    prefix = PrefixStage(virtual_tokens=len(ids), init="my card")
    soft = with_virtual_tokens(base.model(), prefix, tokenizer).eval()
    rest = tokenizer(" is lost")["input_ids"]
    with torch.inference_mode():
        before = soft(input_ids=torch.tensor([rest])).logits[0]
        whole = base.model()(input_ids=torch.tensor([ids + rest])).logits[0, len(ids) :]
    torch.testing.assert_close(before, whole, atol=1e-4, rtol=1e-4)


def test_virtual_tokens_must_leave_room_for_a_prompt(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    ensemble = recipe_content()["ensembles"][1]
    ensemble["members"] = [{"name": "a", "kind": "prefix", "virtual_tokens": 96}]
    base = {"kind": "causal", "path": causal_bundle.base_source}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    with pytest.raises(RecipeError, match="96 virtual tokens leave no room"):
        train(recipe, tmp_path / "bundle")


def test_a_lora_on_the_first_layers_scales_by_the_ranks_root(chain_bundle: Bundle) -> None:
    lora, prompt = chain_bundle.ensemble("student").members[0].adapters
    folder = chain_bundle.adapter_dir(lora)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    names = list(load_file(folder / "adapter_model.safetensors"))
    assert len(names) == 1 * 7 * 2
    assert all(".layers.0." in name for name in names)
    config = json.loads((chain_bundle.adapter_dir(prompt) / "adapter_config.json").read_text())
    assert config["peft_type"] == "PROMPT_TUNING"
