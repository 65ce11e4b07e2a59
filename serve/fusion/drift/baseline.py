"""The figures of an ensemble's answers to its validation rows, as its manifest keeps them (`scores.drift`)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.drift.figures import AnswerFigures, agreement_shares
from serve.fusion.drift.psi import population_stability_index
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.fusion.members import Floats, Ints
from serve.fusion.selective.record import digests
from serve.manifest import Contract, Digest, Ensemble, Name, Number, Whole

KEY = "drift"
MOST_BINS = 10
ROWS_OF_A_BIN = 25
"""Validation rows for each bin. Fewer would make the index of equal distributions large by chance."""

Count = Annotated[Whole, Field(ge=0)]


class Histogram(Contract):
    """The values of one figure, in bins between ascending edges; a value equal to an edge is above it."""

    edges: list[Number]
    counts: list[Count]
    """One more than edges."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.counts) != len(self.edges) + 1 or sorted(self.edges) != self.edges:
            raise ValueError("a histogram needs ascending edges, and one count more")
        return self

    @classmethod
    def of(cls, values: Floats, bins: int) -> Self:
        """Returns bins that hold about as many values each."""
        quantiles = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
        edges = np.unique(quantiles[quantiles > values.min()])
        if not len(edges):  # all are equal: below, equal, above
            edges = np.array([values[0], np.nextafter(values[0], np.inf)])
        counts = np.bincount(np.searchsorted(edges, values, "right"), minlength=len(edges) + 1)
        return cls(edges=edges.tolist(), counts=counts.tolist())

    def bins(self, values: Floats) -> NDArray[np.int64]:
        """Returns [N] the bin of each value."""
        return np.searchsorted(self.edges, values, "right")


class LabelCounts(Contract):
    """How often answers have each of the most frequent labels. The last count is that of all others together, and of
    answers without a label."""

    names: list[str]
    counts: list[Count]
    """One more than names."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.counts) != len(self.names) + 1:
            raise ValueError("there must be one count more than names")
        return self

    @classmethod
    def of(cls, labels: NDArray[np.bool_], names: list[str], bins: int) -> Self:
        kept = np.argsort(-labels.sum(axis=0), kind="stable")[: bins - 1]
        counts = label_counts(labels, kept)
        return cls(names=[names[place] for place in kept], counts=counts.sum(axis=0).tolist())


def label_counts(labels: NDArray[np.bool_], kept: Ints) -> NDArray[np.int64]:
    """Returns [N, K + 1] of each answer: whether it has each of the kept labels, and how many others; 1 if it has
    none."""
    own = labels[:, kept].astype(np.int64)
    others = labels.sum(axis=1) - own.sum(axis=1)
    others[~labels.any(axis=1)] = 1
    return np.column_stack([own, others])


class Baseline(Contract):
    """The figures of the answers to the validation rows, and of which adapters these were."""

    format: Literal[1] = 1
    digests: dict[Name, list[Digest]]
    """Member -> the digests of its adapters."""
    rows: Count
    agreement: Histogram
    entropy: Histogram
    labels: LabelCounts

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self | None:
        """Returns a manifest's baseline; None if there is none, or it is that of other adapters."""
        try:
            found = cls.model_validate(ensemble.scores.get(KEY))
        except ValidationError:
            return None
        known = found.digests == digests(ensemble)
        return found if known and set(found.labels.names) <= set(ensemble.labels or ()) else None

    @classmethod
    def measured(cls, ensemble: Ensemble, figures: AnswerFigures) -> Self:
        """Returns the baseline of an ensemble whose answers have these figures."""
        rows = len(figures.entropy)
        bins = max(2, min(MOST_BINS, rows // ROWS_OF_A_BIN))
        return cls(
            digests=digests(ensemble),
            rows=rows,
            agreement=Histogram.of(figures.agreement, bins),
            entropy=Histogram.of(figures.entropy, bins),
            labels=LabelCounts.of(figures.labels, list(ensemble.labels or ()), bins),
        )

    def written(self, ensemble: Ensemble) -> Ensemble:
        """Returns the manifest with this baseline."""
        scores = {**ensemble.scores, KEY: self.model_dump(mode="json")}
        return ensemble.model_copy(update={"scores": scores})

    def psi(self, counts: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Returns the index of each figure, from its counts in the same bins."""
        return {
            name: population_stability_index(getattr(self, name).counts, counts[name])
            for name in ("agreement", "entropy", "labels")
        }


def with_baseline(
    fusion: Fusion, outputs: Floats, unseen: Answers, vectors: Floats | None = None
) -> Ensemble:
    """Returns the fusion's manifest with the baseline of its answers to the validation rows; without one for values.

    `outputs` are the members' [M, N, C], `unseen` the answers by fits that had not seen the row. They count unless only
    some members are asked: then the answers that an engine would give do. `vectors` [N, H] are the base's, for a
    gate."""
    asking = asking_for(fusion, outputs.shape[1])
    served = asked_offline(asking, outputs, vectors)
    answers = served if asking.partial else unseen
    places = [np.flatnonzero(rows) for rows in asking.asked]
    alone = [
        fusion.alone(outputs[member, rows], each.name)
        for member, (each, rows) in enumerate(zip(fusion.ensemble.members, places, strict=True))
    ]
    figures = AnswerFigures.of(answers, agreement_shares(answers, alone, places))
    if figures is None or not len(figures.entropy):
        return fusion.ensemble
    return Baseline.measured(fusion.ensemble, figures).written(fusion.ensemble)
