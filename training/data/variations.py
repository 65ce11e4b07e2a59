"""Variations of texts: unlabelled texts near the labelled ones, on which a student asks its teacher.

A teacher is sure of the rows that it was trained on, and says little about them that their labels do not say. What it
knows shows where it is less sure (Tang et al. 2019 mask and cut the texts for this)."""

import random
from collections.abc import Sequence

LEFT_OUT = 0.15
"""Share of the words that are left out."""
JOINED = 0.5
"""Share of the variations that are made of two texts."""


def variations(texts: Sequence[str], each: int, seed: int) -> list[str]:
    """Return `each` variations of every text: with words left out at random, or its beginning joined to the end of
    another text. The same seed gives the same variations."""
    rng = random.Random(seed)
    return [_varied(text, texts, rng) for text in texts for _ in range(each)]


def _varied(text: str, texts: Sequence[str], rng: random.Random) -> str:
    words = text.split()
    if rng.random() < JOINED:
        other = rng.choice(texts).split()
        return " ".join(words[: rng.randint(1, len(words))] + other[rng.randrange(len(other)) :])
    kept = [word for word in words if rng.random() >= LEFT_OUT]
    return " ".join(kept or words)
