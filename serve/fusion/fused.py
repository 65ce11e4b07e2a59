"""The answers of members, alone or fused, to N rows: one label, a set of labels, or a value for each row."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.fusion.members import Floats, Ints


class _Rows:
    """Answers to N rows: every field is an array with one entry a row."""

    def rows(self, places: Ints) -> Self:
        """Returns the answers to the rows at these places."""
        return type(self)(**{name: own[places] for name, own in self._arrays().items()})

    @classmethod
    def joined(cls, parts: Sequence["_Rows"]) -> Self:
        """Returns the answers of all parts, one after another."""
        arrays = [part._arrays() for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fused(_Rows):
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
class FusedSets(_Rows):
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
class FusedValues(_Rows):
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
