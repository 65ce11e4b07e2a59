"""The answers that members, alone or fused, give to N rows: a label each, a set of labels each, or a value each."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.fusion.members import Floats, Ints


@dataclass(frozen=True)
class Fused:
    """Classification: one of C labels a row."""

    probabilities: Floats
    """[N, C], rows summing to 1; shares of the votes for `vote`."""
    entropy: Floats
    """[N] of `probabilities`, in nats."""
    disagreement: Floats
    """[N] mutual information of the members, in nats, before temperature."""
    winners: Ints
    """[N] index of the answered label: the most probable one, or by the tie rule of `vote`."""


@dataclass(frozen=True)
class FusedSets:
    """Multilabel: any number of C labels a row."""

    probabilities: Floats
    """[N, C], each label's own; shares of the votes for `vote`."""
    entropy: Floats
    """[N] of all labels together, taken as independent, in nats."""
    disagreement: Floats
    """[N] sum over the labels of the mutual information of member and label, in nats."""
    chosen: NDArray[np.bool_]
    """[N, C] whether the label is in the row's answer."""


@dataclass(frozen=True)
class FusedValues:
    """Regression: one number a row."""

    values: Floats
    """[N]"""
    std: Floats
    """[N] standard deviation of the members' values around their (weighted) mean; 0 for one member."""


Answers: TypeAlias = Fused | FusedSets | FusedValues


def agreeing(one: Answers, other: Answers) -> NDArray[np.bool_] | None:
    """[N] whether both answer the same label or the same set; None for values, which never quite agree."""
    if isinstance(one, Fused) and isinstance(other, Fused):
        return np.asarray(one.winners == other.winners)
    if isinstance(one, FusedSets) and isinstance(other, FusedSets):
        return np.asarray((one.chosen == other.chosen).all(axis=1))
    return None
