"""Dropout that is fast on CPUs.

Except on Intel's processors, PyTorch draws a mask one element at a time on a CPU. That took a quarter of the training
time of a LoRA on a small encoder. Eight elements from one 64-bit draw take a tenth of it."""

import torch
from torch import nn

LEVELS = 256
"""The values of a byte. The dropout probability is rounded to a multiple of 1/256, and the scale is computed from
it."""


class ByteDropout(nn.Dropout):
    """Like `torch.nn.Dropout`, but with a mask of random bytes on a CPU."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.device.type != "cpu" or not self.training or self.p in (0, 1):
            return super().forward(inputs)
        dropped = min(max(round(self.p * LEVELS), 1), LEVELS - 1)
        draws = torch.empty(-(-inputs.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: inputs.numel()].view(inputs.shape) >= dropped
        return inputs * kept.to(inputs.dtype).mul_(LEVELS / (LEVELS - dropped))


def quicken_dropout(model: nn.Module) -> None:
    """Replace each dropout in `model` with a ByteDropout."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))
