"""Early exit asks fewer members, and keeps its risk."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from serve.fusion.asking.asking import AllMembers, asked_offline
from serve.fusion.asking.rounds import Rounds
from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.selective.bounds import upper_bounds
from serve.fusion.selective.early_exit import exits, fit_exit
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import EarlyExit, Ensemble

Make = Callable[..., Any]
BEST = {"method": "best", "candidates": ["stack", "average"]}
WEIGHTED = {"method": "weighted_average", "temperature": False}
SKILLS = (2.0, 2.4, 2.2, 0.5)
"""m1 is the best member, m3 the worst."""


def test_the_bound_is_scipys_beta_quantile() -> None:
    for wrong, rows in ((0, 10), (3, 50), (17, 1000), (49, 50)):
        expected = beta.ppf(0.95, wrong + 1, rows - wrong)
        assert upper_bounds(wrong, rows, 0.95) == pytest.approx(expected, rel=1e-9)
        interval = binomtest(wrong, rows).proportion_ci(confidence_level=0.9, method="exact")
        assert upper_bounds(wrong, rows, 0.95) == pytest.approx(interval.high, rel=1e-9)
    assert upper_bounds([5, 0], [5, 0], 0.9).tolist() == [1, 1]


def fitted(make_ensemble: Make, outputs: Any, truth: Any, **options: Any) -> Ensemble:
    draft = make_ensemble((None,) * len(outputs), labels=tuple("abcdefgh"))
    method = options.setdefault("method", "average")
    settings = FusionOptions(**({"candidates": [method]} | options))
    return fit_fusion(draft, settings, outputs, truth, np.arange(len(truth)) % 5).ensemble


def asked(ensemble: Ensemble, outputs: Any, risk: float) -> tuple[Fused, Rounds]:
    fusion = Fusion(ensemble)
    choice = fusion.selective.exit(EarlyExit(risk=risk), own=True)
    assert choice is not None
    rounds = Rounds(fusion, *choice, outputs.shape[1])
    answers = asked_offline(rounds, outputs)
    assert isinstance(answers, Fused)
    return answers, rounds


@pytest.mark.parametrize("method", ["average", "weighted_average", "vote"])
def test_new_rows_keep_the_risk_and_cost_fewer_members(
    make_ensemble: Make, noisy: Make, method: str
) -> None:
    outputs, truth = noisy(4, 6000, 8, SKILLS)
    known = outputs[:, :2000], truth[:2000]
    ensemble = fitted(make_ensemble, *known, method=method, weights="accuracy")
    new = outputs[:, 2000:]
    full = Fusion(ensemble)(new)
    assert isinstance(full, Fused)
    costs = []
    for risk in (0.01, 0.05, 0.1):
        answers, rounds = asked(ensemble, new, risk)
        assert np.mean(answers.winners != full.winners) <= risk
        costs.append(rounds.asked.mean())
    assert costs[0] > costs[1] > costs[2]
    assert costs[1] < 0.7, "at a risk of 0.05, three of ten passes are saved"


def test_the_strongest_member_is_asked_first_and_always(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(4, 1000, 8, SKILLS)
    ensemble = fitted(make_ensemble, outputs, truth)
    fit = SelectiveFit.of(ensemble)
    assert fit is not None
    assert fit.early_exit is not None
    assert fit.early_exit.order == ["m1", "m2", "m0", "m3"]
    _, rounds = asked(ensemble, outputs, 0.05)
    assert rounds.asked[1].all()
    assert (rounds.asked[3] <= rounds.asked[0]).all(), "the last is asked only after the others"


def test_an_early_answer_is_the_method_over_the_members_asked(
    make_ensemble: Make, noisy: Make
) -> None:
    outputs, truth = noisy(4, 800, 8, SKILLS)
    ensemble = fitted(make_ensemble, outputs, truth, weights="accuracy", **WEIGHTED)
    answers, rounds = asked(ensemble, outputs, 0.05)
    weights = rounds.asked * np.array(ensemble.weights())[:, None]
    expected = np.einsum("mn,mnc->nc", weights / weights.sum(axis=0), outputs)
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-9)
    assert 1 < rounds.asked.sum(axis=0).mean() < 3.9


def test_without_risk_every_member_with_a_weight_is_asked(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(4, 600, 8, SKILLS)
    ensemble = fitted(make_ensemble, outputs, truth)
    answers, rounds = asked(ensemble, outputs, 0)
    assert rounds.asked.all()
    everybody = asked_offline(AllMembers(Fusion(ensemble), 600), outputs)
    assert isinstance(everybody, Fused)
    np.testing.assert_allclose(answers.probabilities, everybody.probabilities, atol=1e-12)
    np.testing.assert_allclose(answers.disagreement, everybody.disagreement, atol=1e-12)
    ensemble = fitted(make_ensemble, outputs, truth, method="weighted_average")
    zero = [weight == 0 for weight in ensemble.weights()]
    assert any(zero), "greedy weights leave the worst member out"
    _, rounds = asked(ensemble, outputs, 0)
    assert (~rounds.asked.any(axis=1)).tolist() == zero


def test_a_threshold_is_not_fitted_to_luck(noisy: Make) -> None:
    """Of many draws of validation rows, at most one in twenty gives a threshold whose true risk is above the bound."""
    outputs, _ = noisy(3, 44000, 8, (2.0, 2.2, 1.8))
    stages = np.cumsum(outputs, axis=0) / np.arange(1, 4)[:, None, None]
    winners, sure = stages.argmax(axis=2), stages.max(axis=2)
    broken = 0
    for part in np.split(np.arange(40000), 200):
        fit = fit_exit(["a", "b", "c"], sure[:, part], winners[:, part])
        stops = exits(sure[:, 40000:], fit.threshold(0.1))
        early = winners[stops, 40000 + np.arange(4000)]
        broken += np.mean(early != winners[2, 40000:]) > 0.1
    assert broken <= 19, "5% of 200, and three standard deviations more"


def test_a_request_without_a_fit_says_what_to_do(make_ensemble: Make) -> None:
    fusion = Fusion(make_ensemble())
    with pytest.raises(FusionError, match=r"intents@1 has no fit of early exit: train"):
        fusion.selective.exit(EarlyExit(risk=0.1), own=True)
    with pytest.raises(FusionError, match="has no fit of early exit"):
        Fusion(make_ensemble(early_exit={"risk": 0.1}))


def test_the_fit_belongs_to_adapters_and_numbers(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(4, 600, 8, SKILLS)
    ensemble = fitted(make_ensemble, outputs, truth, early_exit={"risk": 0.05})
    assert Fusion(ensemble).selective.exit(None, own=True) is not None
    assert Fusion(ensemble).selective.exit(None, own=False) is None
    other = make_ensemble((None,) * 4, labels=tuple("abcdefgh"), changed=(2,)).members
    swapped = ensemble.model_copy(update={"members": other})
    with pytest.raises(StaleFusionError, match="other adapters than those of m2"):
        Fusion(swapped)
    assert Fusion(swapped, allow_stale=True).stale
    hotter = ensemble.fusion.model_copy(update={"temperature": 3.0})
    with pytest.raises(FusionError, match="has no fit of early exit"):
        Fusion(ensemble.model_copy(update={"fusion": hotter}))


def test_best_is_a_method_that_can_stop_early(make_ensemble: Make, noisy: Make) -> None:
    outputs, truth = noisy(3, 200, 8, (1.0, 1.5, 1.2))
    ensemble = fitted(make_ensemble, outputs, truth, early_exit={"risk": 0.05}, **BEST)
    assert ensemble.fusion.method == "average"
    assert ensemble.fusion.early_exit == EarlyExit(risk=0.05)
