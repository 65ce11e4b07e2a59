"""Carries fused log-probabilities from the sampler to the client.

vLLM returns the raw log-probabilities of each row, which label scoring needs; but a row of a group has one member's
alone. After sampling, `rewrite` replaces the leader's row by the group's (`logprob_rows.py`). vLLM carries all columns
that a request asked for through every process. At the other end, `read` takes them apart by their order. `install`
wraps `Sampler.forward` of vLLM 0.32, behind the version guard in `arguments.py`.
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
from serve.engine.lockstep.sibling_spec import SiblingSpec


def install() -> None:
    """Makes vLLM's sampler report fused log-probabilities."""
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
    """Writes the groups' log-probabilities into the leaders' rows of `tensors` ([batch, columns])."""
    for group in processor.logprob_rows:
        columns = slice(len(group.values))
        tensors.logprobs[group.row, columns] = group.values.to(tensors.logprobs.dtype)
        tensors.logprob_token_ids[group.row, columns] = group.tokens.to(
            tensors.logprob_token_ids.dtype
        )
        tensors.selected_token_ranks[group.row] = group.rank.to(tensors.selected_token_ranks.dtype)


@dataclass(frozen=True)
class TokenReport:
    """What the members report about some tokens, one entry for each token."""

    disagreement: tuple[float, ...]
    """In nats."""
    members: tuple[tuple[float, ...], ...]
    """For each member, its log-probability of each token."""


def read(
    logprobs: Sequence[LogprobsOnePosition], spec: SiblingSpec
) -> tuple[list[LogprobsOnePosition], TokenReport]:
    """Returns the fused log-probabilities of some tokens as vLLM's serving expects them, and the members' report."""
    tokens = []
    nats = []
    members = []
    for position in logprobs:
        entries = list(position.items())
        fused, report = entries[: -1 - spec.size], entries[-1 - spec.size :]
        tokens.append(dict(fused))
        nats.append(report[0][1].logprob)
        members.append([entry.logprob for _, entry in report[1:]])
    return tokens, TokenReport(tuple(nats), tuple(zip(*members, strict=True)))
