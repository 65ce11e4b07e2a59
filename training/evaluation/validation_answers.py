"""What an ensemble and its members answer to the validation rows, from the outputs that are stored in the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from serve.bundle import Bundle
from serve.fusion.fitting.fit import Targets, refit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, Fused, FusedSets
from serve.fusion.labels.rules import Criterion
from serve.fusion.labels.temperature import fit_temperature, temper
from serve.fusion.members import Floats, Ints
from serve.manifest import Ensemble


@dataclass(frozen=True)
class ValidationAnswers:
    """The answers of an ensemble to its validation rows. No model is loaded for them."""

    ensemble: Ensemble
    options: FusionOptions
    outputs: Floats
    """The members' outputs [M, N, C] or [M, N]."""
    truth: Targets
    folds: Ints
    """[N]"""
    members: Mapping[str, Answers]
    """What each member answers alone. In classification, with a temperature of its own, fitted on these rows."""
    served: Answers
    """What the ensemble answers. Each row is answered by a fit that did not see it, except for the one temperature."""

    @classmethod
    def read(cls, bundle: Bundle, ensemble: Ensemble) -> Self | None:
        """Read the stored outputs and fuse them. Returns None if the bundle does not store the outputs of all members.
        Raises FusionError for unsound files, and BundleError."""
        stored = bundle.validation_scores(ensemble.name)
        rows = stored.rows()
        if rows is None:
            return None
        found = [stored.outputs(member, rows.header.rows) for member in ensemble.members]
        if any(each is None for each in found):
            return None
        outputs = np.stack([each for each in found if each is not None])
        truth, options = rows.truth, rows.header.options
        return cls(
            ensemble,
            options,
            outputs,
            truth,
            rows.folds,
            {
                member.name: alone(ensemble, member.name, own, truth)
                for member, own in zip(ensemble.members, outputs, strict=True)
            },
            cross_fitted(ensemble, options, outputs, truth, rows.folds),
        )

    @property
    def criterion(self) -> Criterion:
        """What the fusion is fitted by. The shares of a vote are no probabilities and have no log loss; it is judged by
        its answers."""
        task = self.ensemble.task
        found = self.options.criterion_for(task)
        if found == "log_loss" and self.ensemble.fusion.method == "vote":
            return "micro_f1" if task == "multilabel" else "accuracy"
        return found

    def without(self, member: int) -> Answers:
        """Return what the ensemble would answer without the member at this place, fitted anew by the same method."""
        others = [place for place in range(len(self.outputs)) if place != member]
        return self.of(others)

    def of(self, places: Sequence[int]) -> Answers:
        """Return what the members at these places would answer together, fitted anew by the same method."""
        members = [self.ensemble.members[place] for place in places]
        smaller = self.ensemble.model_copy(update={"members": members})
        outputs = self.outputs[list(places)]
        return cross_fitted(smaller, self.options, outputs, self.truth, self.folds)


def cross_fitted(
    ensemble: Ensemble, options: FusionOptions, outputs: Floats, truth: Targets, folds: Ints
) -> Answers:
    """Return the answers [N] of the ensemble's fusion method, each by a fit to the other folds. Raises FusionError."""
    method = ensemble.fusion.method
    if method == "average":
        # It has no weights, so the quick ones do.
        options = options.model_copy(update={"weights": "accuracy"})
    return refit_fusion(ensemble, options, outputs, truth, folds).validation[method]


def right_rows(answers: Answers, truth: Targets) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which rows [N] are answered rightly: the right label, or exactly the right set. Raises ValueError for
    values."""
    match answers:
        case Fused():
            return np.asarray(answers.winners == truth)
        case FusedSets():
            return np.asarray((answers.chosen == truth.astype(np.bool_)).all(axis=1))
    raise ValueError("a value is never exactly right")


def alone(ensemble: Ensemble, name: str, output: Floats, truth: Targets) -> Answers:
    """Return what the member `name` of an ensemble answers by itself, from its output [N, C] or [N]. In classification
    it has a temperature of its own, fitted on these rows."""
    answers = Fusion(ensemble).alone(output, name)
    if not isinstance(answers, Fused):
        return answers
    pooled = answers.probabilities
    return replace(answers, probabilities=temper(pooled, fit_temperature(pooled, truth)))
