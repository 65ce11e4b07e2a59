"""The log-probabilities of the token that a group has chosen, in the columns that vLLM carries to the client.

First come the chosen token and the k most likely ones, with their fused log-probabilities. If the call asks for them,
two more things follow: the disagreement, and each member's log-probability of the chosen token. vLLM keeps the columns
as a mapping from token to value. So these values stand under token ids that no other column uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.engine.lockstep.sibling_spec import SiblingSpec
from serve.fusion.tokens.step import FusionStep


@dataclass(frozen=True)
class LogprobRow:
    """The log-probabilities of one group. It is small and keeps no distribution."""

    row: int
    """The leader's row in the batch."""
    tokens: torch.Tensor
    """[columns]"""
    values: torch.Tensor
    """[columns]"""
    rank: torch.Tensor
    """[] of the chosen token in the fused distribution, from 1."""


def logprob_rows(step: FusionStep, leaders: Sequence[tuple[int, SiblingSpec]]) -> list[LogprobRow]:
    """Returns the log-probabilities of the groups of a step that asked for any.

    `leaders`: row and spec of each group's leader, in the order of `step`."""
    wanted = [number for number, (_, spec) in enumerate(leaders) if spec.columns is not None]
    if not wanted:
        return []
    chosen = step.fused.gather(1, step.tokens.unsqueeze(1))
    ranks = (step.fused >= chosen).sum(dim=1)
    reporting = any(leaders[number][1].report_members for number in wanted)
    nats = step.disagreement() if reporting else None
    rows = []
    for group in wanted:
        row, spec = leaders[group]
        token, count = step.tokens[group], spec.top or 0
        ordered = step.fused[group].topk(min(count + spec.size + 2, step.fused.shape[1]))
        values = [chosen[group], ordered.values[:count]]
        ids = [token.unsqueeze(0), ordered.indices[:count]]
        if spec.report_members:
            assert nats is not None
            values += [nats[group].unsqueeze(0), step.members[group, :, token]]
            unused = ordered.indices[count:]
            ids += [unused[unused != token][: 1 + spec.size]]
        rows.append(LogprobRow(row, torch.cat(ids), torch.cat(values), ranks[group]))
    return rows
