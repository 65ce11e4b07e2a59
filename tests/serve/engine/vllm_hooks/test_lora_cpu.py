"""LoRA on the CPU, row by row, for every mix of adapters in a step."""

from types import SimpleNamespace

import pytest
import torch

from serve.engine.vllm_hooks.lora_cpu import (
    StepRows,
    add_lora_embedding,
    add_lora_linear,
    add_lora_logits,
)

SLOTS, RANK, IN = 3, 4, 6
SIZES = (5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([0, 1, 2], id="a row each"),
        pytest.param([2, 0, 1], id="in another order"),
        pytest.param([1, 1, 2, 2], id="neighbours, two each"),
        pytest.param([0, 1, 2, 0, 1, 2], id="two groups, interleaved"),
        pytest.param([-1, 2, 0, -1], id="between rows of the base"),
        pytest.param([0, -1, 1], id="around a row of the base"),
        pytest.param([0, 0, 0, 2], id="uneven"),
        pytest.param([1, 0, 1, 1], id="uneven, apart"),
        pytest.param([2, 2, 2], id="one adapter"),
        pytest.param([-1, -1], id="no adapter"),
    ],
)
def test_every_row_gets_its_own_adapter_and_no_other(slots: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN).to(dtype) for _ in SIZES)
    b = tuple(torch.randn(SLOTS, 1, size, RANK).to(dtype) for size in SIZES)
    inputs = torch.randn(len(slots), IN).to(dtype)
    outputs = torch.randn(len(slots), sum(SIZES)).to(dtype)
    expected = outputs.clone().double()
    for row, slot in enumerate(slots):
        if slot >= 0:
            change = [
                up[slot, 0].double() @ (down[slot, 0].double() @ inputs[row].double())
                for down, up in zip(a, b, strict=True)
            ]
            expected[row] += 0.5 * torch.cat(change)
    step = SimpleNamespace(choir_rows=StepRows.of(torch.tensor(slots)))
    add_lora_linear(step, outputs, inputs, a, b, 0.5, SIZES)
    tolerance = 1e-5 if dtype is torch.float32 else 0.15
    torch.testing.assert_close(outputs.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_call_for_other_rows_than_the_steps_finds_their_adapters() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(SLOTS, 1, RANK, IN), torch.randn(SLOTS, 1, 5, RANK)
    inputs, outputs = torch.randn(2, IN), torch.zeros(2, 5)
    slots = torch.tensor([1, 2])
    step = SimpleNamespace(choir_rows=StepRows.of(torch.tensor([0])), token_lora_indices=slots)
    add_lora_linear(step, outputs, inputs, (a,), (b,), 1.0, (5,))
    for row, slot in enumerate([1, 2]):
        torch.testing.assert_close(outputs[row], b[slot, 0] @ (a[slot, 0] @ inputs[row]))


@pytest.mark.parametrize("slots", [[1, -1, 0], [2, 1, 1]])
def test_embeddings_and_a_padded_head_too(slots: list[int]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(SLOTS, 1, RANK, IN), torch.randn(SLOTS, 1, 5, RANK)
    rows = StepRows.of(torch.tensor(slots))
    step = SimpleNamespace(choir_rows=rows, choir_sampled=rows)
    looked_up, inputs = torch.randn(len(slots), RANK), torch.randn(len(slots), IN)
    vectors, logits = torch.zeros(len(slots), 5), torch.zeros(len(slots), 8)
    add_lora_embedding(step, vectors, looked_up, b, add_input=True)
    add_lora_logits(step, logits, inputs, a, b, 2.0)
    assert not logits[:, 5:].any()
    for row, slot in enumerate(slots):
        if slot < 0:
            assert not vectors[row].any()
            assert not logits[row].any()
            continue
        torch.testing.assert_close(vectors[row], b[slot, 0] @ looked_up[row])
        torch.testing.assert_close(logits[row, :5], 2 * b[slot, 0] @ (a[slot, 0] @ inputs[row]))
