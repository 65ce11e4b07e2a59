"""What a figure draws of answers with known truth: calibration, risk against coverage, and confused labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from serve.fusion.fitting.fit import Targets
from serve.fusion.fused import Answers, Fused, FusedSets
from training.evaluation.validation_answers import right_rows

Floats = NDArray[np.float64]
BINS = 10
"""Bins of a reliability diagram, of equal mass."""
STEPS = 100
"""The most points of a risk-coverage curve."""
WORST = 10
"""The most labels of the matrix of confused labels."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram (Niculescu-Mizil and Caruana 2005), in bins of equal mass."""

    confidence: list[float]
    """The mean confidence in each bin."""
    accuracy: list[float]
    """The share of right answers in each bin."""


@dataclass(frozen=True)
class RiskCoverage:
    """How wrong the answers are if only the most confident ones are given (El-Yaniv and Wiener 2010)."""

    coverage: list[float]
    """The share of the rows that are answered."""
    risk: list[float]
    """The share of wrong answers among them; for values, the root of their mean squared error."""
    area: float
    """The mean risk over all coverages."""


@dataclass(frozen=True)
class Confusion:
    """The labels with the most errors, and what they are taken for."""

    labels: list[str]
    """The K worst labels, the worst first: those that most errors concern."""
    counts: list[list[int]]
    """[K][K + 1]: rows of each label by their answer, one of the same labels or, last, any other label."""
    rows: list[int]
    """The rows of each label."""
    pairs: list[tuple[str, str, int]]
    """The most frequent errors over all labels: right label, answer, rows."""


def reliability(answers: Answers, truth: Targets) -> Reliability | None:
    """Return the diagram of the most probable label or, in multilabel, of all labels of all rows together; None for
    values."""
    match answers:
        case Fused():
            confidence, right = answers.probabilities.max(axis=1), right_rows(answers, truth)
            if not right.any() or right.all():
                # scikit-learn takes the larger of the outcomes for the right one.
                return _one_outcome(confidence, bool(right.any()))
        case FusedSets():
            confidence, right = answers.probabilities.ravel(), truth.astype(np.bool_).ravel()
        case _:
            return None
    share, mean = calibration_curve(right, confidence, n_bins=BINS, strategy="quantile")
    return Reliability(mean.tolist(), share.tolist())


def risk_coverage(answers: Answers, truth: Targets) -> RiskCoverage:
    """Return the curve of answers that are given in the order of their confidence: the probability of the label, that
    of the whole set, or, for values, how close the members are."""
    match answers:
        case Fused():
            confidence = answers.probabilities.max(axis=1)
            loss = 1.0 - right_rows(answers, truth)
        case FusedSets():
            chosen = np.where(answers.chosen, answers.probabilities, 1 - answers.probabilities)
            confidence = np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).sum(axis=1)
            loss = 1.0 - right_rows(answers, truth)
        case _:
            confidence = -answers.std
            loss = (answers.values - truth) ** 2
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    risk = np.cumsum(loss[order]) / count
    if not isinstance(answers, Fused | FusedSets):
        risk = np.sqrt(risk)
    shown = np.unique(np.linspace(0, len(order) - 1, min(STEPS, len(order))).round().astype(int))
    coverage = count / len(order)
    return RiskCoverage(coverage[shown].tolist(), risk[shown].tolist(), float(risk.mean()))


def confusion(answers: Fused, truth: Targets, labels: Sequence[str]) -> Confusion:
    """Return the labels that most errors concern, as the right label or as the answer. Labels without errors are left
    out."""
    counts = confusion_matrix(truth, answers.winners, labels=range(len(labels)))
    errors = counts - np.diag(np.diag(counts))
    concerned = errors.sum(axis=0) + errors.sum(axis=1)
    order = np.argsort(-concerned, kind="stable")[:WORST]
    worst = [int(label) for label in order if concerned[label]]
    inside = counts[np.ix_(worst, worst)]
    others = counts[worst].sum(axis=1) - inside.sum(axis=1)
    pairs = Counter(
        {(int(right), int(said)): int(errors[right, said]) for right, said in np.argwhere(errors)}
    )
    return Confusion(
        labels=[labels[label] for label in worst],
        counts=np.column_stack([inside, others]).tolist() if worst else [],
        rows=counts[worst].sum(axis=1).tolist(),
        pairs=[
            (labels[right], labels[said], count)
            for (right, said), count in pairs.most_common(WORST)
        ],
    )


def _one_outcome(confidence: Floats, right: bool) -> Reliability:
    parts = [part for part in np.array_split(np.sort(confidence), BINS) if len(part)]
    return Reliability([float(part.mean()) for part in parts], [float(right)] * len(parts))
