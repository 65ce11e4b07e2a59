"""What a trained member leaves on disk."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from serve.bundle import Bundle
from training.predict import OfflineMembers


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
    offline._model = base.eval()
    texts = ["my card is lost", "the transfer is late"]
    expected = offline.probabilities(texts)
    np.testing.assert_allclose(
        OfflineMembers(causal_bundle, alone).probabilities(texts), expected, atol=1e-5
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
