"""Applies repetition, frequency and presence penalties to one member's logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve.fusion.tokens.merge import Tensor


@dataclass(frozen=True)
class Penalties:
    """Penalties as in vLLM's sampling parameters. `repetition` counts prompt and output, the other two the output
    only."""

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
    """Returns the logits [V] of one member after its penalties for its own prompt and the tokens written so far.

    Repetition (Keskar et al. 2019) divides the positive logits and multiplies the negative ones of tokens that occur.
    Frequency is subtracted once for each time that a token was written, presence once."""
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
    """Returns how often each token occurs, [V]."""
    ids = torch.tensor(list(tokens), dtype=torch.int64, device=logits.device)
    counts: Tensor = torch.bincount(ids, minlength=logits.shape[-1])[: logits.shape[-1]]
    return counts.to(logits.dtype)
