"""Chooses one token of a fused distribution."""

import hashlib
from dataclasses import dataclass

import torch

from serve.fusion.tokens.merge import MASKED, Tensor

GREEDY = 1e-5
"""With a temperature below this one, the most likely token is chosen, as in vLLM."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, in the terms of vLLM's sampling parameters."""

    temperature: float = 1.0
    top_k: int = 0
    """0 or -1: all tokens."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY


def narrow(log_probs: Tensor, sampling: Sampling) -> Tensor:
    """Returns log-probabilities [V] after temperature, top-k, top-p and min-p, in that order; -inf for a token that is
    cut off.

    Top-k keeps tokens that tie with the k-th. Top-p keeps the fewest tokens whose probabilities reach p (Holtzman et
    al. 2020). Min-p keeps tokens with at least that share of the most likely token's probability (Nguyen et al. 2024).
    """
    scores = (log_probs / sampling.temperature).log_softmax(dim=-1)
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < least, MASKED).log_softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, places = scores.sort(descending=True, stable=True)
        probs = ordered.exp()
        beyond = probs.cumsum(dim=-1) - probs >= sampling.top_p
        beyond[0] = False
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(0, places, beyond), MASKED)
    if sampling.min_p > 0:
        least = scores.max() + torch.log(torch.tensor(sampling.min_p))
        scores = scores.masked_fill(scores < least, MASKED)
    return scores.log_softmax(dim=-1)


def draw(log_probs: Tensor, seed: int, position: int) -> Tensor:
    """Draws one token [] of the distribution [V] by the Gumbel-max trick (Gumbel 1954; here as an exponential race).

    The noise depends on the seed and the output position alone. So a text is the same alone and under load, and after a
    preemption that computes it again."""
    # seeded anew for each position: a generator that lived on would have to be rewound with its request
    generator = torch.Generator(device=log_probs.device).manual_seed(_key(seed, position))
    race = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs - race.log()).argmax(dim=-1)


def _key(seed: int, position: int) -> int:
    """Returns 63 bits that have nothing in common for neighbouring seeds and positions."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
