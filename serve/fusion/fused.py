"""The answers of members, alone or fused, to N rows: one label, a set of labels, or a value for each row."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.fusion.members import Floats, Ints


@dataclass(frozen=True)
class Fused:
    """Classification: one of C labels a row."""

    probabilities: Floats
    """[N, C]; each row sums to 1. With `vote`, the shares of the votes."""
    entropy: Floats
    """[N] entropy of each row of `probabilities`, in nats."""
    disagreement: Floats
    """[N] mutual information of member and label, in nats, before the temperature is applied."""
    winners: Ints
    """[N] index of the answered label: the most probable one; with `vote`, the one that its tie rule gives."""


@dataclass(frozen=True)
class FusedSets:
    """Multilabel: any number of C labels a row."""

    probabilities: Floats
    """[N, C]; the probability of each label by itself. With `vote`, the shares of the votes."""
    entropy: Floats
    """[N] entropy of all labels together, taken as independent, in nats."""
    disagreement: Floats
    """[N] sum over the labels of the mutual information of member and label, in nats."""
    chosen: NDArray[np.bool_]
    """[N, C] whether the label is part of the row's answer."""


@dataclass(frozen=True)
class FusedValues:
    """Regression: one number a row."""

    values: Floats
    """[N] in the unit of the members' values."""
    std: Floats
    """[N] standard deviation of the members' values around their (weighted) mean; 0 for one member."""


Answers: TypeAlias = Fused | FusedSets | FusedValues


def agreeing(one: Answers, other: Answers) -> NDArray[np.bool_] | None:
    """Returns [N] whether two answers are the same label or the same set; None for values, which are hardly ever
    equal."""
    if isinstance(one, Fused) and isinstance(other, Fused):
        return np.asarray(one.winners == other.winners)
    if isinstance(one, FusedSets) and isinstance(other, FusedSets):
        return np.asarray((one.chosen == other.chosen).all(axis=1))
    return None


def joined(parts: Sequence[Answers], order: Ints) -> Answers:
    """Joins answers to parts of the rows into answers to all rows, in `order`."""
    kind = type(parts[0])
    return kind(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
            for field in fields(kind)
        }
    )
