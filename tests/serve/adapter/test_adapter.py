"""What serving refuses about an adapter, on folders that PEFT wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from serve.adapter import AdapterError, inspect_adapter
from serve.digest import folder_digest

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_describes_a_lora_that_peft_made(causal_base, make_adapter):
    adapter = make_adapter(causal_base, r=4)
    info = inspect_adapter(adapter.path, base=causal_base, max_rank=8, base_kind="causal")
    assert (info.kind, info.rank, info.tensors, info.head) == ("lora", 4, 8, None)
    assert info.digest == folder_digest(adapter.path)
    assert set(info.target_modules) == {
        f"model.layers.{layer}.{module}"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.down_proj")
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_refuses_values_that_are_not_finite_in_every_float_type(
    causal_base, make_adapter, dtype, value
):
    adapter = make_adapter(causal_base)
    file = adapter.path / "adapter_model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_torch(file).items()}
    save_torch(tensors, file)
    inspect_adapter(adapter.path, base=causal_base)
    tensors[KEY][-1, -1] = value
    save_torch(tensors, file)
    with pytest.raises(AdapterError, match=r"layers\.0.*NaN or infinite"):
        inspect_adapter(adapter.path, base=causal_base)


def test_refuses_a_nan_beyond_the_first_piece_of_a_large_tensor(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    tensors = adapter.tensors()
    wide = np.zeros((4, 600_000), dtype=np.float32)
    wide[3, -1] = np.nan
    adapter.set_tensors(tensors | {KEY: wide})
    with pytest.raises(AdapterError, match="NaN"):
        inspect_adapter(adapter.path)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_refuses_a_missing_file_by_name(causal_base, make_adapter, missing):
    adapter = make_adapter(causal_base)
    (adapter.path / missing).unlink()
    with pytest.raises(AdapterError, match=f"{missing} is missing"):
        inspect_adapter(adapter.path)


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(AdapterError, match="There is no folder"):
        inspect_adapter(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "x.pt", "y.pkl"])
def test_refuses_pickles_even_beside_safetensors(causal_base, make_adapter, name):
    adapter = make_adapter(causal_base)
    (adapter.path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match=f"{name} may hold a pickle"):
        inspect_adapter(adapter.path)


def test_refuses_code_and_links(causal_base, make_adapter, tmp_path):
    adapter = make_adapter(causal_base)
    code = adapter.path / "modeling.py"
    code.write_text("")
    with pytest.raises(AdapterError, match=r"modeling\.py is not part of an adapter"):
        inspect_adapter(adapter.path)
    code.unlink()
    (adapter.path / "notes.txt").symlink_to(tmp_path)
    with pytest.raises(AdapterError, match="symbolic link"):
        inspect_adapter(adapter.path)


def test_refuses_broken_json_and_broken_safetensors(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    weights = adapter.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(AdapterError, match="not a sound safetensors file"):
        inspect_adapter(adapter.path)
    (adapter.path / "adapter_config.json").write_text('{"r": 4,')
    with pytest.raises(AdapterError, match="not valid JSON"):
        inspect_adapter(adapter.path)
    (adapter.path / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="JSON object"):
        inspect_adapter(adapter.path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3', which is not served"),
        (
            {"peft_type": "MULTITASK_PROMPT_TUNING"},
            "not served; LORA, PREFIX_TUNING, PROMPT_TUNING",
        ),
        ({"peft_type": ["LORA"]}, "which is not served"),
        ({"peft_type": "PREFIX_TUNING"}, "'num_virtual_tokens'"),
        ({"use_dora": True}, "DoRA is not served"),
        ({"bias": "all"}, "biases are not served"),
        ({"modules_to_save": ["lm_head"]}, "lm_head in modules_to_save"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"r": 0}, "whole number of at least 1"),
        ({"r": "8"}, "whole number of at least 1"),
        ({"r": True}, "whole number of at least 1"),
        ({"r": 8}, "has rank 4, but adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 65}}, "rank 65 is above the engine's limit of 64"),
        ({"rank_pattern": {"q_proj": 8}}, "has rank 4, but adapter_config.json says 8"),
        ({"rank_pattern": [8]}, "must be an object"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
    ],
)
def test_refuses_what_the_engine_does_not_serve(causal_base, make_adapter, fields, reason):
    adapter = make_adapter(causal_base)
    adapter.set_config(**fields)
    with pytest.raises(AdapterError, match=reason):
        inspect_adapter(adapter.path, base=causal_base, max_rank=64, base_kind="causal")


def test_a_rank_above_the_limit_names_the_limit_that_would_do(causal_base, make_adapter):
    adapter = make_adapter(causal_base, r=9)
    inspect_adapter(adapter.path, base=causal_base, max_rank=16)
    with pytest.raises(AdapterError, match=r"rank 9 .* limit of 8; .*max_lora_rank 16"):
        inspect_adapter(adapter.path, base=causal_base, max_rank=8)


def test_takes_ranks_by_pattern_as_peft_does(causal_base, make_adapter):
    adapter = make_adapter(causal_base, r=4, rank_pattern={r"layers\.1\.self_attn\.q_proj": 6})
    assert inspect_adapter(adapter.path, base=causal_base).rank == 6


def test_refuses_matrices_without_their_partner_or_of_another_rank(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    tensors = adapter.tensors()
    partner = KEY.replace("lora_A", "lora_B")
    adapter.set_tensors({name: value for name, value in tensors.items() if name != partner})
    with pytest.raises(AdapterError, match=r"q_proj' has no lora_B"):
        inspect_adapter(adapter.path, base=causal_base)
    adapter.set_tensors(tensors | {KEY: tensors[KEY][:3].copy()})
    with pytest.raises(AdapterError, match="do not fit each other"):
        inspect_adapter(adapter.path, base=causal_base)
    adapter.set_tensors(tensors | {KEY: tensors[KEY].astype(np.int32)})
    with pytest.raises(AdapterError, match="type I32"):
        inspect_adapter(adapter.path, base=causal_base)
    adapter.set_tensors(tensors | {"base_model.model.lm_head.weight": tensors[KEY]})
    with pytest.raises(AdapterError, match=r"a whole 'lm_head' of \[4, 16\], and the base's is"):
        inspect_adapter(adapter.path, base=causal_base)
    adapter.set_tensors({})
    with pytest.raises(AdapterError, match="holds no tensors"):
        inspect_adapter(adapter.path, base=causal_base)


def test_refuses_an_adapter_of_another_base(causal_base, encoder_base, make_adapter):
    adapter = make_adapter(causal_base)
    with pytest.raises(AdapterError, match=r"None of its 4 modules .* another base"):
        inspect_adapter(adapter.path, base=encoder_base)
    tensors = adapter.tensors()
    adapter.set_tensors(tensors | {KEY: np.zeros((4, 17), dtype=np.float32)})
    with pytest.raises(AdapterError, match="it maps 17 to 16 values, the base 16 to 16"):
        inspect_adapter(adapter.path, base=causal_base)


def test_refuses_an_adapter_of_a_deeper_base(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    deeper = {name.replace("layers.1", "layers.7"): v for name, v in adapter.tensors().items()}
    adapter.set_tensors(deeper)
    with pytest.raises(AdapterError, match=r"no module 'model\.layers\.7"):
        inspect_adapter(adapter.path, base=causal_base)


def test_reads_the_shapes_of_a_sharded_base(causal_base, make_adapter, tmp_path):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "causal" / "sharded"
    AutoModelForCausalLM.from_pretrained(causal_base).save_pretrained(sharded, max_shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    inspect_adapter(make_adapter(causal_base).path, base=sharded)


def test_a_prefix_may_stand_on_the_adapters_side_or_on_the_bases(
    encoder_base, make_adapter, tmp_path
):
    from transformers import BertConfig, BertForSequenceClassification

    with_head = tmp_path / "with_head"
    config = BertConfig.from_pretrained(encoder_base)
    BertForSequenceClassification(config).save_pretrained(with_head)
    adapter = make_adapter(encoder_base)
    bare = adapter.tensors()
    inspect_adapter(adapter.path, base=with_head)
    start = "base_model.model."
    adapter.set_tensors({n.replace(start, f"{start}bert."): value for n, value in bare.items()})
    inspect_adapter(adapter.path, base=encoder_base)
    inspect_adapter(adapter.path, base=with_head)
    adapter.set_tensors({n.replace(start, f"{start}roberta."): value for n, value in bare.items()})
    with pytest.raises(AdapterError, match="another base"):
        inspect_adapter(adapter.path, base=with_head)


def test_lora_on_a_tied_output_layer_and_on_embeddings_fits(causal_base, make_adapter, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = tmp_path / "causal-tied" / "base"
    config = LlamaConfig.from_pretrained(causal_base, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tied)
    adapter = make_adapter(tied, target_modules=["lm_head"])
    tensors = {n: v for n, v in adapter.tensors().items() if "lora_" in n}
    adapter.set_tensors(tensors)
    inspect_adapter(adapter.path, base=tied)
    both = make_adapter(causal_base, name="both", target_modules=["embed_tokens", "q_proj"])
    both.set_tensors({n: v for n, v in both.tensors().items() if "lora_" in n})
    inspect_adapter(both.path, base=causal_base)


def test_an_encoder_adapter_needs_a_head_that_fits(encoder_base, make_adapter):
    adapter = make_adapter(encoder_base)

    def inspect(rows=3):
        return inspect_adapter(
            adapter.path, base=encoder_base, base_kind="encoder", head_rows=rows
        ).head

    with pytest.raises(AdapterError, match=r"head\.safetensors is missing"):
        inspect()
    adapter.add_head(normalize="true")
    head = inspect()
    assert head is not None
    assert (head.labels, head.hidden, head.normalize, head.pair) == (3, 16, True, None)
    with pytest.raises(AdapterError, match="3 rows, but the ensemble needs 2"):
        inspect(rows=2)
    adapter.add_head(width=64, pair="towers")
    head = inspect()
    assert head is not None
    assert (head.hidden, head.pair, head.normalize) == (16, "towers", False)
    adapter.add_head(width=8)
    with pytest.raises(AdapterError, match="vectors of 8 values, but the base gives 16"):
        inspect()
    adapter.add_head(normalize="yes")
    with pytest.raises(AdapterError, match="'true' or 'false', not 'yes'"):
        inspect()
    adapter.add_head(pair="other")
    with pytest.raises(AdapterError, match="'towers'"):
        inspect()
    adapter.add_head(scale="2")
    with pytest.raises(AdapterError, match="unknown metadata scale"):
        inspect()


def test_a_causal_adapter_has_no_head(causal_base, make_adapter):
    adapter = make_adapter(causal_base)
    adapter.add_head()
    with pytest.raises(AdapterError, match="not for a base that scores labels as text"):
        inspect_adapter(adapter.path, base=causal_base, base_kind="causal")


def test_what_passes_is_what_peft_loads(causal_base, make_adapter):
    """The largest rank and the names agree with the model that PEFT builds from the folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(causal_base, r=3, rank_pattern={"down_proj": 5})
    info = inspect_adapter(adapter.path, base=causal_base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(causal_base), adapter.path
    )
    layers = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }
    assert set(info.target_modules) == set(layers)
    assert info.rank == max(layers.values())


def test_refuses_a_base_without_safetensors(causal_base, make_adapter, tmp_path):
    base = tmp_path / "pickled"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="never pickle files"):
        inspect_adapter(make_adapter(causal_base).path, base=Path(base))
