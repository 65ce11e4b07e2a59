"""The LoRA that is nearest to a change of weights: its singular value decomposition (Eckart and Young 1936)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_EXACT = 1024
"""Matrices with a side of at most this size are decomposed exactly, larger ones by random projections (Halko et al.
2011), which takes a small part of the time."""
_OVERSAMPLING, _ITERATIONS = 16, 4
_ROUNDING = 1e-6
"""Singular values below this share of the largest one are rounding errors."""


@dataclass
class LowRank:
    """The LoRA of a change, and how well it stands for it."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Module -> A [r, in] and B [out, r], at a scaling of 1."""
    embeddings: set[str] = field(default_factory=set)
    """Those of the modules in which tokens are looked up."""
    changed: float = 0.0
    """The sum of the squares of the change."""
    missed: float = 0.0
    """The sum of the squares of what the LoRA does not change, or not right."""
    left_out: list[str] = field(default_factory=list)
    """Parameters that have changed, and that a LoRA cannot change."""

    @property
    def error(self) -> float:
        """The norm of what is missed over the norm of the change."""
        return float((self.missed / self.changed) ** 0.5) if self.changed else 0.0

    @property
    def rank(self) -> int:
        return max((len(a) for a, _ in self.pairs.values()), default=0)


def low_rank(
    before: Any,
    after: Any,
    rank: int,
    taken: Callable[[str, bool], bool],
    whole: Callable[[str], bool],
    advance: Callable[[int], None],
) -> LowRank:
    """Returns the LoRA of at most `rank` that turns the model `before` most nearly into `after`, a model of the same
    class.

    `taken` says of a module's name, and of whether it is an embedding, if LoRA on it is served. `whole` says of a
    parameter if it is stored as it is, and counts as exact. `advance` counts parameters."""
    found = LowRank()
    layers = dict(_layers(before))
    others = dict(after.named_parameters(remove_duplicate=False))
    for name, old in before.named_parameters(remove_duplicate=False):
        advance(1)
        delta = (others[name].detach() - old.detach()).float()
        square = float(delta.double().square().sum())
        if square == 0 or whole(name):
            continue
        found.changed += square
        module = name.removesuffix(".weight")
        layer = layers.get(module) if name.endswith(".weight") else None
        embedding = isinstance(layer, nn.Embedding)
        if layer is None or not taken(module, embedding):
            found.missed += square
            found.left_out.append(name)
            continue
        if embedding or isinstance(layer, Conv1D):
            delta = delta.T
        a, b = _factors(delta, rank)
        found.missed += float((delta - b @ a).double().square().sum())
        found.pairs[module] = a, b
        if embedding:
            found.embeddings.add(module)
    return found


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
            yield name, module


def _factors(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns A [r, in] and B [out, r], whose product is the best approximation of a rank of at most `rank`."""
    if min(delta.shape) <= _EXACT:
        u, values, v = torch.linalg.svd(delta, full_matrices=False)
    else:
        u, values, v = torch.svd_lowrank(delta, rank + _OVERSAMPLING, niter=_ITERATIONS)
        v = v.mT
    kept = max(1, min(rank, int((values > _ROUNDING * values[0]).sum())))
    root = values[:kept].sqrt()
    return root[:, None] * v[:kept], u[:, :kept] * root
