"""What serving refuses about prefix and prompt adapters, on folders that PEFT wrote."""

import json

import numpy as np
import pytest

from serve.adapter import AdapterError, check_together, inspect_adapter
from serve.digest import folder_digest

PREFIX = {"prefix_projection": True, "encoder_hidden_size": 8}
MLP = {"encoder_hidden_size": 8}
LSTM = {"encoder_hidden_size": 8, "encoder_reparameterization_type": "LSTM"}


@pytest.mark.parametrize(
    ("saved", "kind", "config"),
    [
        ("prefix", "prefix", {}),
        ("prefix", "prefix", PREFIX),
        ("prompt", "prompt", {}),
        ("p-tuning", "prompt", MLP),
        ("p-tuning", "prompt", LSTM),
    ],
)
def test_describes_what_peft_saved(causal_base, make_soft, saved, kind, config):
    adapter = make_soft(causal_base, saved, **config)
    for base in (causal_base, None):
        info = inspect_adapter(adapter.path, base=base, max_rank=1, base_kind="causal")
        assert (info.kind, info.virtual_tokens, info.rank, info.tensors) == (kind, 3, 0, 1)
    assert info.digest == folder_digest(adapter.path)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
def test_an_encoder_base_takes_none_of_them(causal_base, make_soft, kind):
    adapter = make_soft(causal_base, kind, **({} if kind != "p-tuning" else MLP))
    with pytest.raises(AdapterError, match="an encoder base takes LoRA adapters only"):
        inspect_adapter(adapter.path, base_kind="encoder")


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_refuses_shapes_that_do_not_fit(causal_base, make_soft, kind):
    adapter = make_soft(causal_base, kind)
    rows = adapter.tensors()["prompt_embeddings"]
    for spoilt in (rows[:2], rows[:, :-1], rows[None]):
        adapter.set_tensors({"prompt_embeddings": np.ascontiguousarray(spoilt)})
        for base in (causal_base, None):
            with pytest.raises(AdapterError, match=r"has the shape \[.*must be \[3, "):
                inspect_adapter(adapter.path, base=base)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_values_that_are_not_finite(causal_base, make_soft, value):
    adapter = make_soft(causal_base, "prefix")
    rows = adapter.tensors()["prompt_embeddings"]
    rows[2, -1] = value
    adapter.set_tensors({"prompt_embeddings": rows})
    with pytest.raises(AdapterError, match="NaN or infinite"):
        inspect_adapter(adapter.path, base=causal_base)


def test_refuses_an_encoder_that_was_not_applied(causal_base, make_soft):
    adapter = make_soft(causal_base, "p-tuning", **MLP)
    rows = adapter.tensors()["prompt_embeddings"]
    adapter.set_tensors({"embedding.weight": rows, "mlp_head.0.weight": rows})
    with pytest.raises(AdapterError, match=r"its encoder applied.*not embedding\.weight"):
        inspect_adapter(adapter.path, base=causal_base)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_virtual_tokens": 0}, "'num_virtual_tokens' .* at least 1, not 0"),
        ({"num_virtual_tokens": "3"}, "not '3'"),
        ({"num_virtual_tokens": True}, "not True"),
        ({"num_virtual_tokens": 4}, r"must be \[4, "),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
        ({"modules_to_save": ["score"]}, "Whole modules in an adapter"),
    ],
)
def test_refuses_what_its_configuration_says(causal_base, make_soft, fields, reason):
    adapter = make_soft(causal_base, "prefix")
    adapter.set_config(**fields)
    with pytest.raises(AdapterError, match=reason):
        inspect_adapter(adapter.path, base=causal_base)


@pytest.mark.parametrize("fields", [{"num_layers": 1}, {"task_type": "TEXT"}], ids=str)
def test_what_peft_refuses_to_load_is_refused(causal_base, make_soft, fields):
    """Also where the tensor fits the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_soft(causal_base, "prefix")
    adapter.set_config(**fields)
    with pytest.raises((RuntimeError, ValueError)):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(causal_base), adapter.path)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        inspect_adapter(adapter.path, base=causal_base)


def test_refuses_more_virtual_tokens_than_the_context_holds(causal_base, make_soft):
    adapter = make_soft(causal_base, "prompt", num_virtual_tokens=2047)
    with pytest.raises(AdapterError, match=r"2047 virtual tokens leave no room .* 2048"):
        inspect_adapter(adapter.path, base=causal_base)


def with_config(base, folder, change):
    """The base with another `config.json`."""
    folder.mkdir()
    for file in base.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_base_with_names_of_its_own_for_its_sizes_is_left_to_the_engine(
    causal_base, make_soft, tmp_path, kind
):
    def rename(config):
        for old, new in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd")):
            config[new] = config.pop(old)

    base = with_config(causal_base, tmp_path / "other", rename)
    adapter = make_soft(causal_base, kind)
    assert inspect_adapter(adapter.path, base=base).virtual_tokens == 3


def test_a_prefix_needs_full_attention_in_all_layers(causal_base, make_soft, tmp_path):
    adapter = make_soft(causal_base, "prefix")
    types = {"layer_types": ["full_attention", "sliding_attention"]}
    base = with_config(causal_base, tmp_path / "sliding", lambda config: config.update(types))
    with pytest.raises(AdapterError, match="layers of sliding_attention"):
        inspect_adapter(adapter.path, base=base)


def test_a_member_takes_one_lora_and_one_other():
    for fine in ([], ["lora"], ["prefix"], ["lora", "prompt"], ["prefix", "lora"]):
        check_together(fine)
    for bad in (["lora", "lora"], ["prefix", "prompt"], ["prompt", "prompt"]):
        with pytest.raises(AdapterError, match="takes one"):
            check_together(bad)
