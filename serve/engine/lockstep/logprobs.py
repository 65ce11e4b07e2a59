"""Fused log-probabilities on their way from the sampler to the client.

vLLM returns the raw log-probabilities of each row (label scoring needs them so), which for a group are one member's
own. `rewrite` replaces the leader's row after sampling by what is told of the group (`told.py`). vLLM carries all
columns that a request asked for through every process; `read` takes them apart again at the other end, by their order.
`install` wraps `Sampler.forward` of vLLM 0.32, behind the version guard in `arguments.py`.
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
    for told in processor.told:
        columns = slice(len(told.values))
        tensors.logprobs[told.row, columns] = told.values.to(tensors.logprobs.dtype)
        tensors.logprob_token_ids[told.row, columns] = told.tokens.to(
            tensors.logprob_token_ids.dtype
        )
        tensors.selected_token_ranks[told.row] = told.rank.to(tensors.selected_token_ranks.dtype)


@dataclass(frozen=True)
class TokenReport:
    """What the members thought of some tokens, one entry a token."""

    disagreement: tuple[float, ...]
    """Nats."""
    members: tuple[tuple[float, ...], ...]
    """Of each member, its log-probability of each token."""


def read(
    logprobs: Sequence[LogprobsOnePosition], spec: SiblingSpec
) -> tuple[list[LogprobsOnePosition], TokenReport]:
    """The fused log-probabilities of some tokens as vLLM's serving wants them, and the report beside them."""
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
