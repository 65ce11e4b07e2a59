"""Dropout by random bytes against PyTorch's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from training.stages.dropout import ByteDropout, quicken_dropout


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(
    probability: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    inputs = torch.ones(997, 1003, dtype=dtype)
    outputs = ByteDropout(probability)(inputs)
    assert outputs.dtype == dtype
    assert (outputs == 0).float().mean() == pytest.approx(probability, abs=1 / 256)
    assert outputs.double().mean() == pytest.approx(1, rel=0.05)
    assert len(outputs.unique()) == 2, "what is kept is scaled by one factor"


def test_elements_fall_independently() -> None:
    torch.manual_seed(0)
    dropped = ByteDropout(0.5)(torch.ones(4096, 64)) == 0
    assert dropped.double().mean(0).sub(0.5).abs().max() < 0.05
    together = torch.corrcoef(dropped.T.double()).fill_diagonal_(0)
    assert together.abs().max() < 0.1


def test_gradients_pass_where_elements_were_kept() -> None:
    torch.manual_seed(0)
    inputs = torch.ones(64, 64, requires_grad=True)
    outputs = ByteDropout(0.25)(inputs)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, outputs)
    assert inputs.grad.max() == pytest.approx(4 / 3)


def test_a_seed_gives_the_same_mask_again() -> None:
    layer, inputs = ByteDropout(0.3), torch.ones(100, 7)
    torch.manual_seed(5)
    first = layer(inputs)
    torch.manual_seed(5)
    assert torch.equal(layer(inputs), first)
    assert not torch.equal(layer(inputs), first)


def test_nothing_is_dropped_outside_training_or_at_zero() -> None:
    inputs = torch.randn(8, 8)
    assert torch.equal(ByteDropout(0.5).eval()(inputs), inputs)
    assert torch.equal(ByteDropout(0.0)(inputs), inputs)
    assert not ByteDropout(1.0)(inputs).any()


def test_a_models_dropouts_are_replaced_those_of_its_lora_too() -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
    )
    lora = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "down_proj"])
    model = nn.Sequential(nn.Dropout(0.4), get_peft_model(LlamaForCausalLM(config), lora))
    quicken_dropout(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in found] == [0.4, *[0.2] * 4]
    assert all(isinstance(module, ByteDropout) for module in found)
