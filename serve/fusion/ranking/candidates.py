"""What the members of an ensemble have written to one input, and what a ranker reads of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serve.fusion.members import Floats
from serve.fusion.ranking.likeness import likeness
from serve.fusion.stack.stacker import MAX_FEATURES, grouped

JUDGES = MAX_FEATURES - 2
"""The most columns of log-probabilities; of more members, neighbours are averaged."""


@dataclass(frozen=True)
class Candidates:
    """The answers of M members to one input."""

    texts: Sequence[str]
    """[M], in the members' order."""
    tokens: Sequence[int]
    """[M] how many tokens each has, with the end token if the member wrote one."""
    log_probs: Floats
    """[M, M] the log-probability of each candidate's tokens after the member's own prompt: row i is member i, column j
    is what member j wrote. In nats; of the model as it is, without penalties or temperature."""

    @cached_property
    def agreement(self) -> Floats:
        """The mean chrF of each candidate to the others [M]; 1 for the only one."""
        count = len(self.texts)
        if count == 1:
            return np.ones(1)
        alike = likeness([text.strip() for text in self.texts])
        return np.asarray((alike.sum(axis=1) - alike.diagonal()) / (count - 1))

    def features(self) -> Floats:
        """Returns what a ranker reads [M, F], with F = min(M, 14) + 2: for each candidate, the mean log-probability of
        its tokens by each member, the logarithm of its length, and its mean chrF to the others."""
        tokens = np.maximum(np.asarray(self.tokens, dtype=np.float64), 1.0)
        judged = grouped(np.asarray(self.log_probs, dtype=np.float64) / tokens, JUDGES)
        return np.stack([*judged, np.log(tokens), self.agreement], axis=1)


def same_texts(texts: Sequence[str]) -> bool:
    """Returns whether there is nothing to choose: all texts are equal, but for surrounding space."""
    return len({text.strip() for text in texts}) == 1
