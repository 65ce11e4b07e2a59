"""LoRA on the CPU, repaired and made faster.

vLLM 0.32 gathers each row's adapter weights by slot number and marks rows without an adapter with -1, which wraps to
the last slot: once every slot is taken, plain base rows in a batch with LoRA rows get the last adapter's output. Here
rows are grouped by adapter and those without one are left alone. Linear layers, which are nearly all of the work, take
the groups from the step's metadata: found once a step, not once a layer.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from vllm.lora.ops import torch_ops
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

Rows: TypeAlias = slice | torch.Tensor


def rows_of_adapters(slots: torch.Tensor, rows: int) -> Iterator[tuple[int, Rows]]:
    """Each adapter slot named in `slots[:rows]` with the rows that use it, as a slice if they are neighbours; slot -1
    is no adapter."""
    slots = slots[:rows]
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        chosen = (slots == slot).nonzero(as_tuple=True)[0]
        first, last = int(chosen[0]), int(chosen[-1])
        yield slot, slice(first, last + 1) if last - first + 1 == len(chosen) else chosen


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


_update_metadata = punica_cpu.PunicaWrapperCPU.update_metadata


def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
    """Also note which rows of the coming step belong to which adapter."""
    _update_metadata(self, *args, **kwargs)
    slots = self.token_lora_indices
    self.choir_rows = len(slots)
    self.choir_groups = list(rows_of_adapters(slots, self.choir_rows))


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **kwargs: Any,
) -> None:
    """y[row] += scale * B[slot of row] @ A[slot of row] @ x[row], in neighbouring columns of `output_slices`.

    As in vLLM, the product with A is in float32."""
    inputs, outputs = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    count = len(inputs)
    groups = (
        self.choir_groups
        if count == self.choir_rows
        else list(rows_of_adapters(self.token_lora_indices, count))
    )
    for slot, chosen in groups:
        own = inputs[chosen].float()
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            low = (own @ squeezed(a)[slot].float().T).to(outputs.dtype)
            up = squeezed(b)[slot].to(outputs.dtype).T
            columns = outputs[:, start : start + size]
            if isinstance(chosen, slice):
                columns[chosen].addmm_(low, up, alpha=scale)
            else:
                columns[chosen] += scale * (low @ up)
            start += size


def repair() -> None:
    """Put these functions in the place of vLLM's, wherever vLLM has imported them by name."""
    for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        for module in (lora_ops, punica_cpu, torch_ops):
            setattr(module, function.__name__, function)
    punica_cpu.PunicaWrapperCPU.update_metadata = update_metadata
    punica_cpu.PunicaWrapperCPU.add_lora_linear = add_lora_linear
