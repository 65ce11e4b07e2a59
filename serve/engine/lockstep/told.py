"""What is told of the token that a group has chosen, in the columns that vLLM carries to the client.

The chosen token and the k most likely ones come with their fused log-probabilities; then, if asked for, come columns
that mean something else: the disagreement, and each member's log-probability of the chosen token. vLLM carries them as
a mapping from token to value, so the latter stand under tokens that are not told of otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.engine.lockstep.sibling_spec import SiblingSpec
from serve.fusion.tokens.step import FusionStep


@dataclass(frozen=True)
class Told:
    """Of one group. Small, while the distributions that it is taken from are large."""

    row: int
    """The leader's, in the batch."""
    tokens: torch.Tensor
    """[columns]"""
    values: torch.Tensor
    """[columns]"""
    rank: torch.Tensor
    """[] of the chosen token in the fused distribution, from 1."""


def tell(step: FusionStep, leaders: Sequence[tuple[int, SiblingSpec]]) -> list[Told]:
    """What the clients of a step's groups want to know. `leaders`: row and spec of each group's leader."""
    wanted = [number for number, (_, spec) in enumerate(leaders) if spec.columns is not None]
    if not wanted:
        return []
    chosen = step.fused.gather(1, step.tokens.unsqueeze(1))
    ranks = (step.fused >= chosen).sum(dim=1)
    nats = step.disagreement() if any(leaders[number][1].members for number in wanted) else None
    told = []
    for group in wanted:
        row, spec = leaders[group]
        token, count = step.tokens[group], spec.top or 0
        ordered = step.fused[group].topk(min(count + spec.size + 2, step.fused.shape[1]))
        values = [chosen[group], ordered.values[:count]]
        ids = [token.unsqueeze(0), ordered.indices[:count]]
        if spec.members:
            assert nats is not None
            values += [nats[group].unsqueeze(0), step.members[group, :, token]]
            spare = ordered.indices[count:]
            ids += [spare[spare != token][: 1 + spec.size]]
        told.append(Told(row, torch.cat(ids), torch.cat(values), ranks[group]))
    return told
