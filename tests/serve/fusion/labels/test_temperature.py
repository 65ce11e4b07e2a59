"""Temperature, against a grid and against data whose temperature is known."""

import numpy as np
import pytest
from scipy.special import softmax

from serve.fusion.labels.temperature import fit_temperature, temper


def test_tempering_is_a_softmax_of_scaled_logits():
    logits = np.random.default_rng(0).normal(size=(20, 5))
    np.testing.assert_allclose(temper(softmax(logits, axis=1), 2.5), softmax(logits / 2.5, axis=1))


@pytest.mark.parametrize("skill", [0.3, 1.0, 3.0])
def test_the_fitted_temperature_is_the_best_of_a_fine_grid(noisy, skill):
    (pooled,), targets = noisy(1, 200, 5, skills=(skill,))
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4000))
    tempered = softmax(np.log(pooled) / grid[:, None, None], axis=2)
    losses = -np.log(tempered[:, np.arange(200), targets]).mean(axis=1)
    best = grid[int(np.argmin(losses))]
    assert fit_temperature(pooled, targets) == pytest.approx(best, rel=2e-3)


def test_it_finds_the_temperature_that_data_was_made_with():
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(20_000, 4))
    targets = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    overconfident = softmax(logits * 1.7, axis=1)
    assert fit_temperature(overconfident, targets) == pytest.approx(1.7, rel=0.05)


def test_certain_answers_stay_finite():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert 0.05 <= fit_temperature(certain, [0, 1, 2, 0]) <= 20
    assert np.isfinite(fit_temperature(certain, [1, 1, 2, 0]))
    np.testing.assert_allclose(temper(certain, 20.0).sum(axis=1), 1)
