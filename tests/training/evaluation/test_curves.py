"""Calibration, risk against coverage and confusion, against scikit-learn and plain counting."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from serve.fusion.fused import Fused, FusedSets, FusedValues
from tests.training.report.stored import label_outputs
from training.evaluation.curves import confusion, reliability, risk_coverage


def fused(rows: int = 400, labels: int = 5, skill: float = 2.0) -> tuple[Fused, np.ndarray]:
    (probabilities,), truth = label_outputs(1, rows, labels, skill=skill)
    nothing = np.zeros(rows)
    return Fused(probabilities, nothing, nothing, probabilities.argmax(axis=1)), truth


def test_reliability_is_the_mean_of_sorted_rows_in_equal_bins() -> None:
    answers, truth = fused()
    found = reliability(answers, truth)
    assert found is not None
    order = np.argsort(answers.probabilities.max(axis=1))
    confidence = np.array_split(answers.probabilities.max(axis=1)[order], 10)
    right = np.array_split((answers.winners == truth)[order], 10)
    np.testing.assert_allclose(found.confidence, [part.mean() for part in confidence], atol=1e-9)
    np.testing.assert_allclose(found.accuracy, [part.mean() for part in right], atol=1e-9)


def test_reliability_of_answers_that_are_all_right_or_all_wrong() -> None:
    answers, _ = fused(50)
    for truth, share in ((answers.winners, 1.0), ((answers.winners + 1) % 5, 0.0)):
        found = reliability(answers, truth)
        assert found is not None
        assert set(found.accuracy) == {share}


def test_reliability_of_sets_is_over_all_labels() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random((100, 3))
    truth = random.random((100, 3)) < probabilities
    nothing = np.zeros(100)
    found = reliability(FusedSets(probabilities, nothing, nothing, probabilities > 0.5), truth)
    share, mean = calibration_curve(
        truth.ravel(), probabilities.ravel(), n_bins=10, strategy="quantile"
    )
    assert found is not None
    assert (found.accuracy, found.confidence) == (share.tolist(), mean.tolist())


def test_risk_is_the_error_among_the_surest_rows() -> None:
    answers, truth = fused(90)
    found = risk_coverage(answers, truth)
    confidence = answers.probabilities.max(axis=1)
    for coverage, risk in zip(found.coverage, found.risk, strict=True):
        surest = np.argsort(-confidence, kind="stable")[: round(coverage * 90)]
        assert risk == pytest.approx(np.mean(answers.winners[surest] != truth[surest]))
    assert found.coverage[-1] == 1.0
    assert found.area == pytest.approx(np.mean(found.risk))


def test_a_long_curve_keeps_a_hundred_points_and_its_ends() -> None:
    answers, truth = fused(1000)
    found = risk_coverage(answers, truth)
    assert len(found.coverage) == 100
    assert (found.coverage[0], found.coverage[-1]) == (0.001, 1.0)
    assert found.risk[-1] == pytest.approx(np.mean(answers.winners != truth))


def test_values_are_given_where_members_are_close() -> None:
    values, std = np.array([1.0, 2.0, 3.0]), np.array([0.3, 0.1, 0.2])
    found = risk_coverage(FusedValues(values, std), np.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(found.risk, [0.0, np.sqrt(2), np.sqrt(4 / 3)])


def test_the_confusion_is_scikit_learns_for_the_labels_that_errors_concern() -> None:
    answers, truth = fused(600, labels=30, skill=1.5)
    names = [f"l{number}" for number in range(30)]
    found = confusion(answers, truth, names)
    whole = confusion_matrix(truth, answers.winners, labels=range(30))
    errors = whole - np.diag(whole.diagonal())
    concerned = errors.sum(axis=0) + errors.sum(axis=1)
    places = [names.index(label) for label in found.labels]
    assert len(places) == 10
    assert sorted(concerned[places], reverse=True) == concerned[places].tolist()
    assert min(concerned[places]) >= max(np.delete(concerned, places))
    for line, right in enumerate(places):
        assert found.counts[line][:-1] == whole[right, places].tolist()
        assert sum(found.counts[line]) == found.rows[line] == np.sum(truth == right)
    right, said, count = found.pairs[0]
    assert count == errors.max() == errors[names.index(right), names.index(said)]


def test_answers_without_errors_have_no_confusion() -> None:
    answers, _ = fused(50)
    found = confusion(answers, answers.winners, [f"l{number}" for number in range(5)])
    assert (found.labels, found.counts, found.pairs) == ([], [], [])
