import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from training.scores import calibration_error, classification_scores, generation_scores


def test_classification_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), size=50)
    truth = rng.integers(4, size=50)
    winners = probabilities.argmax(axis=1)
    scores = classification_scores(probabilities, winners, truth)
    assert scores["accuracy"] == pytest.approx((winners == truth).mean())
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, winners, average="macro"))
    assert scores["log_loss"] == pytest.approx(log_loss(truth, probabilities, labels=range(4)))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([True, True, True, False, True, False])
    # Bin of 0.9: |0.9 - 0.75| over 4 of 6 rows; bin of 0.5: 0 over 2 of 6.
    assert calibration_error(confidence, right) == pytest.approx(0.1)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_generation_scores_by_hand() -> None:
    answers = ["Your  LAMP is late.", "We send it now", ""]
    references = [
        ["It comes soon.", "your lamp is late."],
        ["We send a lamp now", "Soon"],
        ["Yes."],
    ]
    scores = generation_scores(answers, references)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    # Second answer: three of its four words are among the five expected: F1 = 2 * 3 / (4 + 5).
    assert scores["token_f1"] == pytest.approx((1 + 6 / 9 + 0) / 3)
