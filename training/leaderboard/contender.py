"""What can be served for labels or values, fitted on some validation rows and judged on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.fitting.fit import Targets, fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, FusedValues, joined
from serve.fusion.labels.rules import Loss
from serve.fusion.labels.tasks import rules_of
from serve.fusion.members import Floats, Ints
from serve.fusion.parameters import Parameters
from serve.manifest import Abstain, Ensemble, Member
from training.evaluation.abstaining import given_answers
from training.leaderboard.board import RungKind


class Outputs(Protocol):
    """The members' outputs for a fixed set of rows."""

    vectors: Floats | None
    """The base's vectors of the rows [N, H], where a gate is among the rungs."""

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
    """A fitted manifest, and its stacker or gate if it has one."""

    manifest: Ensemble
    parameters: Parameters | None

    def answers(self, outputs: Outputs, rows: Ints | None = None) -> Answers:
        """Return the served answers to all rows of `outputs`, or to the places `rows`."""
        return self.asked(outputs, rows)[0]

    def asked(self, outputs: Outputs, rows: Ints | None = None) -> tuple[Answers, Ints]:
        """Return the served answers, and how many forward passes each took [N]."""
        given = outputs.of(self.manifest.members)
        given = given if rows is None else given[:, rows]
        fusion = Fusion(self.manifest, self.parameters)
        asking = asking_for(fusion, given.shape[1])
        answers = asked_offline(asking, given, _vectors(outputs, rows))
        return answers, asking.passes


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
        vectors = _vectors(rows.outputs, places)
        fitted = fit_fusion(self._draft, self._options, outputs, rows.truth[places], folds, vectors)
        return Served(fitted.ensemble, fitted.parameters)


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


@dataclass(frozen=True)
class CrossFitted:
    """A contender's answers to every validation row, each by a fit that did not see the row's fold."""

    answers: Answers
    passes: float
    """How many forward passes an answer took in the mean."""
    given: NDArray[np.bool_] | None
    """[N] whether the answer would not abstain; None where no answer abstains."""


def cross_fitted(contender: Contender, rows: FittingRows, abstain: Abstain) -> CrossFitted:
    """Return the contender's answers to every validation row by a fit that did not see the row's fold: weights,
    stacker, temperature, thresholds, the choice of a member, when to stop asking, and when to abstain."""
    parts: list[Answers] = []
    places: list[Ints] = []
    given: list[NDArray[np.bool_] | None] = []
    passes = 0
    for fold in np.unique(rows.folds):
        held_out = np.flatnonzero(rows.folds == fold)
        served = contender.fit(rows, np.flatnonzero(rows.folds != fold))
        answers, asked = served.asked(rows.outputs, held_out)
        parts.append(answers)
        given.append(given_answers(served.manifest, answers, abstain))
        places.append(held_out)
        passes += int(asked.sum())
    back = np.argsort(np.concatenate(places))
    known = [each for each in given if each is not None]
    return CrossFitted(
        joined(parts, back),
        passes / len(rows.truth),
        np.concatenate(known)[back] if len(known) == len(given) else None,
    )


def _vectors(outputs: Outputs, rows: Ints | None) -> Floats | None:
    """Return the base's vectors of all rows of `outputs`, or of the places `rows`."""
    if outputs.vectors is None or rows is None:
        return outputs.vectors
    return outputs.vectors[rows]


def _several(folds: Ints) -> Ints:
    """Return the folds; if only one is left, its rows in two parts, because a fit judges each part by the others."""
    if len(np.unique(folds)) > 1:
        return folds
    return np.arange(len(folds)) % 2
