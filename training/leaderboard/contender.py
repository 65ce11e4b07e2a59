"""What can be served for labels or values, fitted on some validation rows and judged on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve.fusion.fitting.fit import Targets, fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, FusedValues, joined
from serve.fusion.labels.rules import Loss
from serve.fusion.labels.tasks import rules_of
from serve.fusion.members import Floats, Ints
from serve.fusion.stack import Stack
from serve.manifest import Ensemble, Member
from training.leaderboard.board import RungKind


class Outputs(Protocol):
    """The members' outputs for a fixed set of rows."""

    def of(self, members: Sequence[Member]) -> Floats:
        """Return probabilities [M, N, C] or values [M, N]."""
        ...


@dataclass(frozen=True)
class FittingRows:
    """Validation rows: the members' outputs, the right answers, and each row's fold [N]."""

    outputs: Outputs
    truth: Targets
    folds: Ints


@dataclass(frozen=True)
class Served:
    """A fitted manifest, and its stacker if it has one."""

    manifest: Ensemble
    stack: Stack | None

    def answers(self, outputs: Outputs, rows: Ints | None = None) -> Answers:
        """Return the served answers to all rows of `outputs`, or to the places `rows`."""
        given = outputs.of(self.manifest.members)
        fusion = Fusion(self.manifest, self.stack)
        return fusion(given if rows is None else given[:, rows])


class Contender(Protocol):
    """A rung of labels or values before it is fitted."""

    name: str
    kind: RungKind

    def fit(self, rows: FittingRows, places: Ints) -> Served:
        """Fit everything that the rung has to fit on the rows at `places`. Raises FusionError for unsound outputs."""
        ...


class FusionContender:
    """The members of `draft`, one or several, fused by one method."""

    def __init__(self, name: str, kind: RungKind, draft: Ensemble, options: FusionOptions) -> None:
        """`options` name the method."""
        self.name = name
        self.kind = kind
        self._draft = draft
        self._options = options

    def fit(self, rows: FittingRows, places: Ints) -> Served:
        outputs = rows.outputs.of(self._draft.members)[:, places]
        folds = _several(rows.folds[places])
        fitted = fit_fusion(self._draft, self._options, outputs, rows.truth[places], folds)
        return Served(fitted.ensemble, fitted.stack)


class BestMember:
    """The member with the lowest loss on the rows that it is chosen on."""

    kind: RungKind = "single"

    def __init__(
        self, name: str, members: Sequence[FusionContender], options: FusionOptions
    ) -> None:
        self.name = name
        self._members = members
        self._options = options

    def fit(self, rows: FittingRows, places: Ints) -> Served:
        served = [member.fit(rows, places) for member in self._members]
        return min(served, key=lambda each: loss_on(each, rows, places, self._options))


def loss_on(served: Served, rows: FittingRows, places: Ints, options: FusionOptions) -> Loss:
    """Return how wrong the served answers to the rows at `places` are, by the criterion of the fit; lower is better."""
    criterion = options.criterion_for(served.manifest.task)
    answers = served.answers(rows.outputs, places)
    values = answers.values if isinstance(answers, FusedValues) else answers.probabilities
    return rules_of(served.manifest).loss(values, rows.truth[places], criterion)


def cross_fitted(contender: Contender, rows: FittingRows) -> Answers:
    """Return the contender's answers to every validation row by a fit that did not see the row's fold: weights,
    stacker, temperature, thresholds, and the choice of a member."""
    parts: list[Answers] = []
    places: list[Ints] = []
    for fold in np.unique(rows.folds):
        held_out = np.flatnonzero(rows.folds == fold)
        served = contender.fit(rows, np.flatnonzero(rows.folds != fold))
        parts.append(served.answers(rows.outputs, held_out))
        places.append(held_out)
    return joined(parts, np.argsort(np.concatenate(places)))


def _several(folds: Ints) -> Ints:
    """Return the folds; if only one is left, its rows in two parts, because a fit judges each part by the others."""
    if len(np.unique(folds)) > 1:
        return folds
    return np.arange(len(folds)) % 2
