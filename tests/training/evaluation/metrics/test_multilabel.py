import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

from tests.training.evaluation.metrics.conftest import ROWS
from training.evaluation.metrics.multilabel import multilabel_metrics


def test_metrics_equal_scikit_learns_on_the_rows_drawn(
    drawn: NDArray[np.int64], times: NDArray[np.float64]
) -> None:
    random = np.random.default_rng(0)
    truth = random.random((ROWS, 5)) < 0.4
    probabilities = np.clip(truth * 0.4 + random.random((ROWS, 5)) * 0.6, 0.01, 0.99)
    said = probabilities >= 0.5
    found = {
        name: metric(times)[0]
        for name, metric in multilabel_metrics(probabilities, said, truth).items()
    }
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth[drawn], said[drawn], average=average, zero_division=0
        )
        assert found[f"{average}_precision"] == pytest.approx(precision)
        assert found[f"{average}_recall"] == pytest.approx(recall)
        assert found[f"{average}_f1"] == pytest.approx(f1)
    assert found["exact_match"] == pytest.approx(accuracy_score(truth[drawn], said[drawn]))
    assert found["log_loss"] == pytest.approx(
        log_loss(truth[drawn].ravel(), probabilities[drawn].ravel())
    )
