"""One step of token-level fusion: from the members' logits to one token for each group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.fusion.tokens.merge import Tensor, disagreement, merge
from serve.fusion.tokens.sampling import Sampling, draw, narrow
from serve.manifest import TokenMethod


@dataclass(frozen=True)
class FusionStep:
    """The outcome of one step for G groups of N members each."""

    members: Tensor
    """[G, N, V] the members' log-probabilities, after masks and penalties."""
    fused: Tensor
    """[G, V] log-probabilities, before temperature, top-k, top-p and min-p."""
    tokens: Tensor
    """[G] the chosen token, which all members of the group get."""
    weights: Tensor
    """[G, N]"""
    method: TokenMethod

    def disagreement(self) -> Tensor:
        """Returns [G] in nats; see `merge.disagreement`."""
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
    """Fuses the members' logits [G, N, V], already masked and penalised, and chooses one token for each group.

    `weights` [G, N] sum to 1 except for `product`, `samplings` has one for each group, `positions` the number of tokens
    that each group has written before, and `plausibility` [G] is for `product`. Raises FusionError for an unknown
    method."""
    members = logits.log_softmax(dim=-1, dtype=torch.float32)
    fused = merge(members, weights, method, plausibility)
    tokens = fused.argmax(dim=-1)
    for group, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        if not sampling.greedy:
            tokens[group] = draw(narrow(fused[group], sampling), sampling.seed, position)
    return FusionStep(members, fused, tokens, weights, method)


def likeliest(logits: Tensor, weights: Tensor) -> Tensor:
    """Returns the tokens [G] that `fuse_step` chooses greedily for an average of members [G, N, V] under weights [G,
    N]. It is faster, for callers that need nothing else of the step."""
    mixture = logits.softmax(dim=-1, dtype=torch.float32).mul_(weights.unsqueeze(-1)).sum(dim=1)
    return mixture.argmax(dim=-1)
