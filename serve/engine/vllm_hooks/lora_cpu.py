"""Repairs LoRA on the CPU, and makes it faster.

vLLM 0.32 gathers each row's adapter weights by slot number. It marks rows without an adapter with -1, which wraps to
the last slot. So once every slot is taken, rows of the plain base in a batch with LoRA rows get the last adapter's
output. Here, rows are grouped by adapter, and rows without an adapter are left alone. The groups are computed once for
each step, not once for each layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows: TypeAlias = slice | torch.Tensor


@dataclass(frozen=True)
class Block:
    """Rows of several adapters with the same number of rows each, as when the members of a group decode."""

    slots: torch.Tensor
    """[adapters]"""
    rows: Rows
    """The rows of the first adapter, then the rows of the second, and so on."""

    @classmethod
    def of(cls, groups: Sequence[tuple[int, Rows]]) -> "Block | None":
        """Returns the block; None if there is only one adapter, or if one has more rows than another.

        `groups`: each adapter's slot and rows."""
        chosen = [(slot, _numbers(rows)) for slot, rows in groups]
        if len(chosen) < 2 or len({len(rows) for _, rows in chosen}) > 1:
            return None
        chosen.sort(key=lambda each: int(each[1][0]))
        rows = torch.cat([each for _, each in chosen])
        first = int(rows[0])
        neighbours = torch.equal(rows, torch.arange(first, first + len(rows)))
        slots = torch.tensor([slot for slot, _ in chosen])
        return cls(slots, slice(first, first + len(rows)) if neighbours else rows)


@dataclass(frozen=True)
class StepRows:
    """Which rows of a step belong to which adapter."""

    count: int
    groups: Sequence[tuple[int, Rows]]
    """Each adapter's slot and rows."""
    block: Block | None

    @classmethod
    def of(cls, slots: torch.Tensor) -> "StepRows":
        """`slots`: the slot of each row; -1 for a row without an adapter."""
        groups = list(_groups(slots))
        return cls(len(slots), groups, Block.of(groups))


def _groups(slots: torch.Tensor) -> Iterator[tuple[int, Rows]]:
    """Yields each adapter's slot and rows. Rows that are neighbours are a slice."""
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        chosen = (slots == slot).nonzero(as_tuple=True)[0]
        first, last = int(chosen[0]), int(chosen[-1])
        yield slot, slice(first, last + 1) if last - first + 1 == len(chosen) else chosen


def _numbers(rows: Rows) -> torch.Tensor:
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def add_lora(
    outputs: torch.Tensor,
    inputs: torch.Tensor,
    a: torch.Tensor | None,
    b: torch.Tensor,
    scale: float,
    rows: StepRows,
) -> None:
    """Adds scale * B[slot of row] @ A[slot of row] @ inputs[row] to outputs[row]. If `a` is None, leaves A out.

    `a` [slots, 1, rank, in] and `b` [slots, 1, out, rank], as vLLM stacks them. As in vLLM, the product with A is in
    float32."""
    down = None if a is None else a.squeeze(1)
    if rows.block is None:
        _add_one_by_one(outputs, inputs, down, b.squeeze(1), scale, rows.groups)
    else:
        _add_at_once(outputs, inputs, down, b.squeeze(1), scale, rows.block)


def _add_at_once(
    outputs: torch.Tensor,
    inputs: torch.Tensor,
    a: torch.Tensor | None,
    b: torch.Tensor,
    scale: float,
    block: Block,
) -> None:
    """Computes all adapters in a few calls: with few rows, the calls cost more than what they compute."""
    adapters = len(block.slots)
    low = inputs[block.rows].view(adapters, -1, inputs.shape[-1])
    if a is not None:
        low = torch.bmm(low.float(), a.index_select(0, block.slots).float().mT)
    low, up = low.to(outputs.dtype), b.index_select(0, block.slots).to(outputs.dtype).mT
    if isinstance(block.rows, slice):
        outputs[block.rows].view(adapters, -1, outputs.shape[-1]).baddbmm_(low, up, alpha=scale)
    else:
        outputs.index_add_(0, block.rows, torch.bmm(low, up).flatten(0, 1), alpha=scale)


def _add_one_by_one(
    outputs: torch.Tensor,
    inputs: torch.Tensor,
    a: torch.Tensor | None,
    b: torch.Tensor,
    scale: float,
    groups: Sequence[tuple[int, Rows]],
) -> None:
    for slot, chosen in groups:
        low = inputs[chosen]
        if a is not None:
            low = low.float() @ a[slot].float().T
        low, up = low.to(outputs.dtype), b[slot].to(outputs.dtype).T
        if isinstance(chosen, slice):
            outputs[chosen].addmm_(low, up, alpha=scale)
        else:
            outputs[chosen] += scale * (low @ up)


_update_metadata = PunicaWrapperCPU.update_metadata


def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
    """Replaces vLLM's method.

    Also notes which rows of the coming step, and which sampled rows, belong to which adapter."""
    _update_metadata(self, *args, **kwargs)
    slots, sampled = self.token_lora_indices, self.sampler_indices
    self.choir_rows = StepRows.of(slots)
    self.choir_sampled = self.choir_rows if torch.equal(slots, sampled) else StepRows.of(sampled)


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
    """Replaces vLLM's method for linear layers, which may be several in one, with neighbouring columns."""
    inputs, outputs = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    rows: StepRows = self.choir_rows
    if rows.count != len(inputs):
        rows = StepRows.of(self.token_lora_indices[: len(inputs)])
    start = 0
    for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
        add_lora(outputs[:, start : start + size], inputs, a, b, scale, rows)
        start += size


def add_lora_embedding(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
) -> None:
    """Replaces vLLM's method for token embeddings. `x` already holds the tokens' columns of A."""
    rows: StepRows = self.choir_rows
    if rows.count != len(x):
        rows = StepRows.of(self.token_lora_indices[: len(x)])
    add_lora(y, x, None, lora_b_stacked, 1.0, rows)


def add_lora_logits(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor,
    lora_b_stacked: torch.Tensor,
    scale: float,
    **kwargs: Any,
) -> None:
    """Replaces vLLM's method for the language model's head. `y` may be wider than B, by vLLM's padding."""
    rows: StepRows = self.choir_sampled
    if rows.count != len(x):
        rows = StepRows.of(self.sampler_indices[: len(x)])
    outputs = y[:, : lora_b_stacked.shape[-2]]
    add_lora(outputs, x, lora_a_stacked, lora_b_stacked, scale, rows)


def _update_prefill_metadata(self: Any, token_lora_tensor: torch.Tensor) -> None:
    """Replaces vLLM's method by nothing.

    It noted runs of equal adapters, at most one for each request. An activated LoRA has two in a prompt, and the engine
    died. Nothing reads the runs any more."""


def repair() -> None:
    """Replaces vLLM's methods by these functions."""
    for function in (
        update_metadata,
        _update_prefill_metadata,
        add_lora_linear,
        add_lora_embedding,
        add_lora_logits,
    ):
        setattr(PunicaWrapperCPU, function.__name__, function)
