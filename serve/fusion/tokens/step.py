"""One step of token-level fusion: member logits in, one token for each group out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.fusion.tokens.merge import Tensor, disagreement, merge
from serve.fusion.tokens.sampling import Sampling, draw, narrow
from serve.manifest import TokenMethod


@dataclass(frozen=True)
class FusionStep:
    """What one step decided for G groups of N members each."""

    members: Tensor
    """[G, N, V] the members' log-probabilities, after masks and penalties."""
    fused: Tensor
    """[G, V] log-probabilities, before temperature and the cuts of sampling."""
    tokens: Tensor
    """[G] the chosen token, which every member gets."""
    weights: Tensor
    """[G, N]"""
    method: TokenMethod

    def disagreement(self) -> Tensor:
        """[G] in nats; see `merge.disagreement`."""
        return disagreement(self.members, self.weights, self.method)


def fuse_step(
    logits: Tensor,
    weights: Tensor,
    method: TokenMethod,
    *,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    plausibility: Tensor | None = None,
) -> FusionStep:
    """Fuse the members' logits [G, N, V], masked and penalised already, and choose one token a group.

    `weights` [G, N] (summing to 1 except for `product`), `samplings` and `positions` (how many tokens were written
    before) one a group, `plausibility` [G] for `product`. Raises FusionError for an unknown method."""
    members = logits.log_softmax(dim=-1, dtype=torch.float32)
    fused = merge(members, weights, method, plausibility)
    tokens = fused.argmax(dim=-1)
    for group, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        if not sampling.greedy:
            tokens[group] = draw(narrow(fused[group], sampling), sampling.seed, position)
    return FusionStep(members, fused, tokens, weights, method)


def likeliest(logits: Tensor, weights: Tensor) -> Tensor:
    """The tokens [G] that `fuse_step` chooses greedily for an average of members [G, N, V] under weights [G, N], for
    those who need nothing else of the step."""
    mixture = logits.softmax(dim=-1, dtype=torch.float32).mul_(weights.unsqueeze(-1)).sum(dim=1)
    return mixture.argmax(dim=-1)
