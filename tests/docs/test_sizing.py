"""The example of the page on sizing, computed by PEFT and vLLM instead of by the page's formulas."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "sizing.md").read_text("utf-8").split())
SHAPE = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(SHAPE)


def test_the_base(base: LlamaForCausalLM) -> None:
    weights = sum(each.numel() for each in base.parameters())
    assert f"{weights / 1e9:.2f} billion weights" in PAGE
    assert f"= {weights * 2 / 1e9:.1f} GB" in PAGE


def test_the_slots_and_the_disk(base: LlamaForCausalLM) -> None:
    def lora_bytes(rank: int) -> int:
        with torch.device("meta"):
            model = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear"))
        size = 2 * sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
        model.unload()
        return size

    slot, adapter = lora_bytes(64), lora_bytes(16)

    assert f"7 · {slot / 1e6:.0f} MB = {7 * slot / 1e9:.1f} GB" in PAGE
    assert f"the seven slots take {7 * adapter / 1e9:.1f} GB" in PAGE
    assert f"that is {adapter / 1e6:.0f} MB for each swapped member" in PAGE
    assert f"or {20 * adapter / 1e9:.1f} GB for the 20 versions" in PAGE


def test_the_cache() -> None:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    layer = FullAttentionSpec(block_size=16, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
    token = 32 * layer.page_size_bytes // 16
    request = 3 * 1500 * token

    assert f"| {token // 1024} KiB |" in PAGE
    assert f"3 · 1,500 · {token // 1024} KiB = {request / 2**20:.0f} MiB" in PAGE
    left = 80 * 0.9 - 16.1 - 2.3 - 4
    assert f"= {left:.1f} GB" in PAGE
    requests = int(left * 1e9 / request)
    assert f"enough for {requests} requests" in PAGE
    assert f"or {3 * requests} sequences" in PAGE


def test_the_engines() -> None:
    assert 20 * 1.5 * 3 == 90
    assert f"= {90 / (128 * 0.7):.3f}." in PAGE
