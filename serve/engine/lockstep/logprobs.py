"""Fused log-probabilities on their way from the sampler to the client.

vLLM returns the raw log-probabilities of each row (label scoring needs them so), which for a group are one member's
own. `rewrite` replaces the leader's row after sampling: the chosen token and the k most likely ones by the fused
distribution, and, if asked for, columns that mean something else: the disagreement, then each member's
log-probability of the chosen token. vLLM carries all columns that a request asked for through every process, as a
mapping from token to value, so the latter stand under tokens that are not reported otherwise; `read` takes them apart
again at the other end, by their order. `install` wraps `Sampler.forward` of vLLM 0.32, behind the version guard in
`arguments.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.logprobs import LogprobsOnePosition
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from serve.engine.lockstep.processor import LockstepProcessor
from serve.engine.lockstep.seat import Seat


def install() -> None:
    """Let vLLM's sampler report fused log-probabilities."""
    forward = Sampler.forward

    def forward_and_rewrite(
        self: Any, logits: torch.Tensor, sampling_metadata: SamplingMetadata, *args: Any, **kw: Any
    ) -> Any:
        output = forward(self, logits, sampling_metadata, *args, **kw)
        if output.logprobs_tensors is not None:
            for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
                if isinstance(processor, LockstepProcessor):
                    rewrite(output.logprobs_tensors, processor)
        return output

    Sampler.forward = forward_and_rewrite


def rewrite(tensors: LogprobsTensors, processor: LockstepProcessor) -> None:
    """Put what was fused into the leaders' rows of `tensors` ([batch, columns])."""
    for fused in processor.fused:
        wanted = [
            (group, siblings[0].seat)
            for group, siblings in enumerate(fused.block.siblings)
            if siblings[0].seat.columns is not None
        ]
        if not wanted:
            continue
        step = fused.step
        chosen = step.fused.gather(1, step.tokens.unsqueeze(1))
        ranks = (step.fused >= chosen).sum(dim=1)
        for group, seat in wanted:
            row, token = int(fused.block.rows[group, 0]), step.tokens[group]
            count = seat.top or 0
            ordered = step.fused[group].topk(min(count + seat.size + 2, step.fused.shape[1]))
            values = [chosen[group], ordered.values[:count]]
            ids = [token.unsqueeze(0), ordered.indices[:count]]
            if seat.members:
                values += [step.disagreement()[group].unsqueeze(0), step.members[group, :, token]]
                spare = ordered.indices[count:]
                ids += [spare[spare != token][: 1 + seat.size]]
            value, id_ = torch.cat(values), torch.cat(ids)
            tensors.logprobs[row, : len(value)] = value.to(tensors.logprobs.dtype)
            tensors.logprob_token_ids[row, : len(id_)] = id_.to(tensors.logprob_token_ids.dtype)
            tensors.selected_token_ranks[row] = ranks[group].to(tensors.selected_token_ranks.dtype)


@dataclass(frozen=True)
class Report:
    """What the members thought of some tokens, one entry a token."""

    disagreement: tuple[float, ...]
    """Nats."""
    members: tuple[tuple[float, ...], ...]
    """Of each member, its log-probability of each token."""


def read(
    logprobs: Sequence[LogprobsOnePosition], seat: Seat
) -> tuple[list[LogprobsOnePosition], Report]:
    """The fused log-probabilities of some tokens as vLLM's serving wants them, and the report beside them."""
    tokens = []
    nats = []
    members = []
    for position in logprobs:
        entries = list(position.items())
        fused, report = entries[: -1 - seat.size], entries[-1 - seat.size :]
        tokens.append(dict(fused))
        nats.append(report[0][1].logprob)
        members.append([entry.logprob for _, entry in report[1:]])
    return tokens, Report(tuple(nats), tuple(zip(*members, strict=True)))
