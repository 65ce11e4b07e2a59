"""LoRA on the CPU, repaired.

vLLM 0.32 gathers each row's adapter weights by slot number and marks rows without an adapter with -1, which wraps to
the last slot: once every slot is taken, plain base rows in a batch with LoRA rows get the last adapter's output. Here
rows are grouped by adapter and those without one are left alone, which is also faster than a gather per row.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from vllm.lora.ops import torch_ops
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

Rows: TypeAlias = slice | torch.Tensor


def rows_of_adapters(slots: torch.Tensor, rows: int) -> Iterator[tuple[int, Rows]]:
    """Each adapter slot named in `slots[:rows]` with the rows that use it; slot -1 is no adapter."""
    slots = slots[:rows]
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        chosen = (slots == slot).nonzero(as_tuple=True)[0]
        yield slot, slice(0, rows) if len(chosen) == rows else chosen


def squeezed(weights: torch.Tensor) -> torch.Tensor:
    """[slots, out, in] from vLLM's [slots, 1, out, in]."""
    return weights.squeeze(1) if weights.dim() == 4 else weights


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """output[row, :rank] = scaling * A[slot of row] @ inputs[row]; zero without an adapter."""
    weights = squeezed(lora_a_weights)
    rows, rank = inputs.shape[0], weights.shape[1]
    output_tensor[:rows, :rank] = 0
    for slot, chosen in rows_of_adapters(lora_indices_tensor, rows):
        product = inputs[chosen].to(output_tensor.dtype) @ weights[slot].to(output_tensor.dtype).T
        output_tensor[chosen, :rank] = scaling * product


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """output[row] (+)= B[slot of row] @ inputs[row]."""
    size = min(output_tensor.shape[1], squeezed(lora_b_weights).shape[1])
    bgmv_expand_slice(
        inputs, lora_b_weights, output_tensor, lora_indices_tensor, 0, size, add_inputs
    )


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """output[row, offset : offset + size] (+)= B[slot of row] @ inputs[row]."""
    weights = squeezed(lora_b_weights)
    rows = min(inputs.shape[0], output_tensor.shape[0])
    size = min(slice_size, weights.shape[1], output_tensor.shape[1] - slice_offset)
    columns = slice(slice_offset, slice_offset + size)
    if not add_inputs:
        output_tensor[:rows, columns] = 0
    for slot, chosen in rows_of_adapters(lora_indices_tensor, rows):
        product = (
            inputs[chosen].to(output_tensor.dtype) @ weights[slot][:size].to(output_tensor.dtype).T
        )
        output_tensor[chosen, columns] += product


def repair() -> None:
    """Put these three functions in the place of vLLM's, wherever vLLM has imported them by name."""
    for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        for module in (lora_ops, punica_cpu, torch_ops):
            setattr(module, function.__name__, function)
