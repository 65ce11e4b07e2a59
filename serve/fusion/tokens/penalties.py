"""Repetition, frequency and presence penalties of one member, before its log-softmax."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.fusion.tokens.merge import Tensor


@dataclass(frozen=True)
class Penalties:
    """As in vLLM's sampling parameters: `repetition` reads prompt and output, the other two the output."""

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0

    @property
    def neutral(self) -> bool:
        return self == NEUTRAL


NEUTRAL = Penalties()


def penalise(
    logits: Tensor, prompt: Sequence[int], output: Sequence[int], penalties: Penalties
) -> Tensor:
    """The logits [V] of one member after its own prompt and the tokens that were written so far.

    Repetition (Keskar et al. 2019) divides positive logits and multiplies negative ones, for each token that was seen;
    frequency is taken off once for each time that a token was written, presence once."""
    if penalties.neutral:
        return logits
    written = _counts(output, logits)
    if penalties.repetition != 1:
        seen = (written > 0) | (_counts(prompt, logits) > 0)
        repeated = torch.where(
            logits > 0, logits / penalties.repetition, logits * penalties.repetition
        )
        logits = torch.where(seen, repeated, logits)
    return logits - penalties.frequency * written - penalties.presence * (written > 0)


def _counts(tokens: Sequence[int], logits: Tensor) -> Tensor:
    """How often each token [V] occurs."""
    ids = torch.tensor(list(tokens), dtype=torch.int64, device=logits.device)
    counts: Tensor = torch.bincount(ids, minlength=logits.shape[-1])[: logits.shape[-1]]
    return counts.to(logits.dtype)
