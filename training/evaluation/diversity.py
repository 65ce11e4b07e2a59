"""Diversity: how far members differ, and what each one is worth to its ensemble (Kuncheva and Whitaker 2003)."""

import itertools

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from serve.fusion.fitting.fit import Targets
from serve.fusion.fused import Answers, Fused, FusedSets, FusedValues
from serve.fusion.labels.pooling import logs
from serve.fusion.labels.rules import Criterion
from training.evaluation.metrics.counts import LabelCounts
from training.evaluation.metrics.resampling import Comparison, Metric, mean_over_rows
from training.evaluation.tables import HEADINGS
from training.evaluation.validation_answers import ValidationAnswers, right_rows

CHANCE = 0.05
"""A member is warned of if its removal helps with a p below this, divided by the number of members (Bonferroni)."""
BETTER_IF_HIGHER: tuple[Criterion, ...] = ("accuracy", "micro_f1")


class Removal(BaseModel):
    """What the ensemble loses without one member, by the criterion that its fusion is fitted by."""

    model_config = ConfigDict(frozen=True)

    member: str
    loss: float
    """How much worse the ensemble is without it; negative if it is better without it."""
    interval: tuple[float, float]
    """The middle 95% of the paired bootstrap."""
    p: float
    """Two-sided, by the paired bootstrap."""
    helps: bool
    """Whether the ensemble is better without the member, by more than chance."""


class Diversity(BaseModel):
    """How the members of one ensemble differ on the validation rows."""

    model_config = ConfigDict(frozen=True)

    ensemble: str
    rows: int
    members: list[str]
    disagreement: list[list[float]]
    """[M][M] the share of rows that two members answer differently; in regression, the root of the mean squared
    difference of their values."""
    error_correlation: list[list[float | None]]
    """[M][M] Pearson's correlation of two members' errors: of being wrong or, in regression, of the residuals. None if
    a member makes no error or only errors."""
    right: float | None
    """The share of rows that the ensemble answers rightly; None in regression."""
    oracle: float | None
    """The share of rows that at least one member answers rightly; None in regression."""
    criterion: Criterion
    value: float
    """The ensemble's criterion, cross-fitted."""
    removals: list[Removal]
    """One for each member; none if there is only one member."""

    @property
    def warnings(self) -> list[str]:
        """Return a sentence for each member that the ensemble is better without."""
        return [
            f"{self.ensemble}: without {each.member} the ensemble is better ({_heading(self.criterion)} "
            f"{-each.loss:.4f} better on {self.rows} validation rows, p = {each.p:.3f}); leave it out"
            for each in self.removals
            if each.helps
        ]

    def line(self) -> str:
        """Return one line for the terminal."""
        pairs = list(itertools.combinations(range(len(self.members)), 2))
        if not pairs:
            return f"{self.ensemble}: one member, so there is nothing to disagree on"
        apart = float(np.mean([self.disagreement[one][other] for one, other in pairs]))
        if self.oracle is None:
            said = f"members' values are {apart:.4f} apart (root mean square)"
        else:
            said = (
                f"two members disagree on {apart:.1%} of {self.rows} validation rows; some member is right on "
                f"{self.oracle:.1%}, the ensemble on {self.right:.1%}"
            )
        best = max(self.removals, key=lambda each: each.loss)
        worth = f"; worth most: {best.member} ({_heading(self.criterion)} {best.loss:+.4f})"
        harmful = [each.member for each in self.removals if each.helps]
        warned = f"; better without {', '.join(harmful)}" if harmful else ""
        return f"{self.ensemble}: {said}{worth}{warned}"


def diversity_of(answers: ValidationAnswers) -> Diversity:
    """Measure how the members differ, and what the ensemble is without each of them. Raises FusionError."""
    ensemble, truth = answers.ensemble, answers.truth
    names = [member.name for member in ensemble.members]
    alone = [answers.members[name] for name in names]
    labelled = not isinstance(answers.served, FusedValues)
    wrong = np.stack([_errors(each, truth) for each in alone])
    criterion = answers.criterion
    several = len(names) > 1
    smaller = [answers.without(place) for place in range(len(names))] if several else []
    metric: list[dict[str, Metric]] = [
        {criterion: criterion_metric(each, truth, criterion)} for each in (answers.served, *smaller)
    ]
    compared = Comparison(metric, len(truth))
    return Diversity(
        ensemble=ensemble.name,
        rows=len(truth),
        members=names,
        disagreement=[[_apart(one, other) for other in alone] for one in alone],
        error_correlation=_correlations(wrong),
        right=float(right_rows(answers.served, truth).mean()) if labelled else None,
        oracle=float((wrong == 0).any(axis=0).mean()) if labelled else None,
        criterion=criterion,
        value=compared.scores[0][criterion],
        removals=[
            _removal(compared, place, name, criterion, len(names))
            for place, name in enumerate(names if several else [], start=1)
        ],
    )


def criterion_metric(answers: Answers, truth: Targets, criterion: Criterion) -> Metric:
    """Return the metric that a fusion's criterion is, of answers to rows with known truth."""
    match answers:
        case FusedValues():
            return mean_over_rows((answers.values - truth) ** 2)
        case Fused() if criterion == "accuracy":
            return mean_over_rows(right_rows(answers, truth))
        case Fused():
            return mean_over_rows(
                -logs(answers.probabilities[np.arange(len(truth)), truth.astype(np.int64)])
            )
        case FusedSets() if criterion == "micro_f1":
            return LabelCounts(answers.chosen, truth.astype(np.bool_)).metric("f1", "micro")
        case FusedSets():
            chosen = np.where(truth, answers.probabilities, 1 - answers.probabilities)
            return mean_over_rows(-logs(chosen).mean(axis=1))


def _removal(
    compared: Comparison, place: int, name: str, criterion: Criterion, members: int
) -> Removal:
    gap = compared.gap(criterion, place, [0])
    sign = -1 if criterion in BETTER_IF_HIGHER else 1
    low, high = sorted((sign * gap.low, sign * gap.high))
    loss = sign * gap.value
    return Removal(
        member=name,
        loss=loss,
        interval=(low, high),
        p=gap.p,
        helps=loss < 0 and gap.p * members < CHANCE,
    )


def _errors(answers: Answers, truth: Targets) -> NDArray[np.float64]:
    """Return 1 for each row that is answered wrongly and else 0, or the residuals of values."""
    if isinstance(answers, FusedValues):
        return np.asarray(answers.values - truth)
    return np.asarray(1.0 - right_rows(answers, truth))


def _apart(one: Answers, other: Answers) -> float:
    match one, other:
        case Fused(), Fused():
            return float(np.mean(one.winners != other.winners))
        case FusedSets(), FusedSets():
            return float((one.chosen != other.chosen).any(axis=1).mean())
        case FusedValues(), FusedValues():
            return float(np.sqrt(np.mean((one.values - other.values) ** 2)))
    raise ValueError("members of one ensemble answer one task")


def _correlations(errors: NDArray[np.float64]) -> list[list[float | None]]:
    centred = errors - errors.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    products = centred @ centred.T
    return [
        [
            float(np.clip(products[one, other] / (norms[one] * norms[other]), -1, 1))
            if norms[one] > 0 and norms[other] > 0
            else None
            for other in range(len(errors))
        ]
        for one in range(len(errors))
    ]


def _heading(criterion: Criterion) -> str:
    return HEADINGS.get(criterion, criterion.replace("_", " "))
