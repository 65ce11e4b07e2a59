"""Abstaining keeps the risk that it promises."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve.fusion.errors import FusionError
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.selective.abstain import NEVER, certainty, fit_abstain
from serve.manifest import Abstain, EarlyExit, Ensemble

Make = Callable[..., Any]


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are right with their own probability, as of a calibrated model."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(5, 1, size=count)
    return sure, rng.random(count) >= sure


def true_risk(threshold: float) -> float:
    """The risk of answers at or above a threshold, by integration: 1 - the mean score of them."""
    grid = np.linspace(threshold, 1, 20001)
    density = grid**4
    return 1 - float((grid * density).sum() / density.sum())


@pytest.mark.parametrize(("risk", "confidence"), [(0.1, 0.9), (0.05, 0.95), (0.02, 0.8)])
def test_the_promise_holds_in_as_many_draws_as_it_says(risk: float, confidence: float) -> None:
    draws = 400
    broken = coverage = 0.0
    for seed in range(draws):
        sure, wrong = rows(800, seed)
        threshold = fit_abstain(sure, wrong).threshold(risk, confidence)
        if threshold != NEVER:
            broken += true_risk(max(threshold, 0.0)) > risk
            coverage += np.mean(sure >= threshold) / draws
    deviation = np.sqrt(confidence * (1 - confidence) / draws)
    assert broken / draws <= 1 - confidence + 3 * deviation
    if risk == 0.1:
        assert coverage > 0.5, "it would be easy to keep a risk by answering nothing"


def test_a_looser_promise_answers_more() -> None:
    sure, wrong = rows(2000, 1)
    fit = fit_abstain(sure, wrong)
    answered = [np.mean(sure >= fit.threshold(risk, 0.95)) for risk in (0.01, 0.05, 0.1, 0.3, 1)]
    assert answered == sorted(answered)
    assert answered[-1] == 1
    assert fit.threshold(0, 0.95) == NEVER
    surer = np.mean(sure >= fit.threshold(0.1, 0.999))
    assert surer < np.mean(sure >= fit.threshold(0.1, 0.6))


def test_equal_scores_are_answered_together() -> None:
    sure = np.array([1.0] * 50 + [0.5] * 150)
    fit = fit_abstain(sure, np.arange(200) % 3 == 0)
    assert fit.covered == [50, 200]
    assert fit.errors == [17, 67]
    assert 0.5 < fit.thresholds[0] < 1


def fitted(make_ensemble: Make, outputs: Any, truth: Any, **options: Any) -> Ensemble:
    draft = make_ensemble((None,) * len(outputs), labels=tuple("abcdefgh"))
    settings = FusionOptions(method="average", candidates=["average"], **options)
    return fit_fusion(draft, settings, outputs, truth, np.arange(len(truth)) % 5).ensemble


@pytest.mark.parametrize("method", ["average", "weighted_average", "vote", "stack"])
def test_answers_to_new_rows_keep_the_risk(make_ensemble: Make, noisy: Make, method: str) -> None:
    outputs, truth = noisy(3, 3000, 8, (1.8, 2.2, 2.0))
    draft = make_ensemble((None,) * 3, labels=tuple("abcdefgh"))
    options = FusionOptions(method=method, candidates=[method])
    fit = fit_fusion(draft, options, outputs[:, :1500], truth[:1500], np.arange(1500) % 5)
    fusion = Fusion(fit.ensemble, fit.parameters)
    answers = fusion(outputs[:, 1500:])
    assert isinstance(answers, Fused)
    wrong = answers.winners != truth[1500:]
    least = fusion.selective.abstain(Abstain(risk=0.02, confidence=0.95), None, own=True)
    assert least is not None
    kept = certainty(answers) >= least
    assert wrong.mean() > 0.03
    assert wrong[kept].mean() <= 0.02
    assert kept.mean() > 0.3


def test_with_early_exit_it_is_fitted_on_the_early_answers(
    make_ensemble: Make, noisy: Make
) -> None:
    outputs, truth = noisy(3, 600, 8, (1.8, 2.2, 2.0))
    ensemble = fitted(
        make_ensemble, outputs, truth, early_exit={"risk": 0.05}, abstain={"risk": 0.05}
    )
    selective = Fusion(ensemble).selective
    both = selective.abstain(None, None, own=True)
    alone = selective.abstain(None, EarlyExit(risk=0.05), own=True)
    assert both == alone is not None
    with pytest.raises(FusionError, match="not fitted for this 'early_exit'"):
        selective.abstain(Abstain(risk=0.02), EarlyExit(risk=0.07), own=True)


def test_a_request_that_cannot_be_honoured_is_refused(make_ensemble: Make) -> None:
    with pytest.raises(FusionError, match="has no fit of abstaining: train"):
        Fusion(make_ensemble()).selective.abstain(Abstain(risk=0.1), None, own=True)
    with pytest.raises(FusionError, match="leave 'method' and 'weights' out"):
        Fusion(make_ensemble()).selective.abstain(Abstain(risk=0.1), None, own=False)
    values = Fusion(make_ensemble(labels=None, task="regression"))
    with pytest.raises(FusionError, match="for classification, not for regression"):
        values.selective.abstain(Abstain(risk=0.1), None, own=True)
