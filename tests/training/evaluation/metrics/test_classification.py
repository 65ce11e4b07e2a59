import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss, precision_recall_fscore_support

from tests.training.evaluation.metrics.conftest import ROWS
from training.evaluation.metrics.calibration import calibration_error
from training.evaluation.metrics.classification import classification_metrics

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def test_metrics_equal_scikit_learns_on_the_rows_drawn(drawn: Ints, times: Floats) -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), size=ROWS)
    # Label 6 is never said, label 5 never true, 4 neither.
    truth = random.choice([0, 1, 2, 3, 6], size=ROWS)
    winners = np.where(random.random(ROWS) < 0.4, truth, random.choice([0, 1, 2, 5], size=ROWS))
    probabilities = np.pad(probabilities, ((0, 0), (0, 3)), constant_values=1e-3)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = {
        name: metric(times)[0]
        for name, metric in classification_metrics(probabilities, winners, truth).items()
    }
    assert found["accuracy"] == pytest.approx((winners == truth)[drawn].mean())
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth[drawn], winners[drawn], average=average, zero_division=0
        )
        assert found[f"{average}_precision"] == pytest.approx(precision)
        assert found[f"{average}_recall"] == pytest.approx(recall)
        assert found[f"{average}_f1"] == pytest.approx(f1)
    assert found["micro_f1"] == pytest.approx(found["accuracy"])
    assert found["log_loss"] == pytest.approx(
        log_loss(truth[drawn], probabilities[drawn], labels=range(7))
    )
    confidence, right = probabilities.max(axis=1)[drawn], (winners == truth)[drawn]
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, 15)
    expected = sum(
        len(rows) / ROWS * abs(confidence[rows].mean() - right[rows].mean()) for rows in bins
    )
    assert found["ece"] == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    """30 rows in 15 bins of two: each bin has one right answer of two."""
    confidence = np.repeat([0.6, 0.9], [16, 14])
    right = np.tile([True, False], 15)
    value = calibration_error(confidence, right)(np.ones((1, 30)))[0]
    assert value == pytest.approx((16 * 0.1 + 14 * 0.4) / 30)


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_few_rows_have_a_calibration_error_too(rows: int) -> None:
    """Sure and always right: no gap in any bin, full or empty."""
    assert calibration_error(np.ones(rows), np.ones(rows, dtype=bool))(np.ones((1, rows))) == [0]
