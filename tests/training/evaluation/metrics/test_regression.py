import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from tests.training.evaluation.metrics.conftest import ROWS
from training.evaluation.metrics.regression import regression_metrics


def test_metrics_equal_scikit_learns_and_scipys_on_the_rows_drawn(
    drawn: NDArray[np.int64], times: NDArray[np.float64]
) -> None:
    random = np.random.default_rng(0)
    truth = np.round(random.random(ROWS) * 5, 1)  # with ties
    values = np.round(truth + random.normal(size=ROWS), 1)
    found = {name: metric(times)[0] for name, metric in regression_metrics(values, truth).items()}
    x, y = values[drawn], truth[drawn]
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, x))
    assert found["mae"] == pytest.approx(mean_absolute_error(y, x))
    assert found["r2"] == pytest.approx(r2_score(y, x))
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_what_is_undefined_is_zero() -> None:
    whole = np.ones((1, 3))
    constant, rising = np.full(3, 0.1), np.arange(3.0)
    assert regression_metrics(constant, rising)["pearson"](whole) == [0]
    assert regression_metrics(constant, rising)["spearman"](whole) == [0]
    assert regression_metrics(rising, constant)["r2"](whole) == [0]
