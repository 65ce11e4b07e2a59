"""The population stability index against scipy and scikit-learn, the baseline of a fit, and the window over it."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import entropy as kullback_leibler
from sklearn.preprocessing import KBinsDiscretizer

from serve.fusion.drift.baseline import Baseline, Histogram
from serve.fusion.drift.figures import AnswerFigures, agreement_shares
from serve.fusion.drift.psi import population_stability_index
from serve.fusion.drift.window import LEAST, Window
from serve.fusion.fitting.fit import fit_fusion, refit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused, FusedSets
from serve.manifest import Ensemble

Make = Callable[..., Ensemble]
Noisy = Callable[..., tuple[np.ndarray, np.ndarray]]
LABELS = tuple("abcdefghijkl")


def reference(expected: np.ndarray, seen: np.ndarray) -> float:
    """PSI is the Kullback-Leibler divergence in both directions (Jeffreys), here by scipy, of counts plus a half."""
    p, q = expected + 0.5, seen + 0.5
    return float(kullback_leibler(p, q) + kullback_leibler(q, p))


def test_the_index_is_scipys_and_the_worked_example() -> None:
    rng = np.random.default_rng(0)
    for bins in (2, 5, 10):
        one, other = rng.integers(0, 200, (2, bins))
        found = population_stability_index(one, other)
        assert found == pytest.approx(reference(one, other), abs=1e-12)
    assert population_stability_index([700, 300], [700, 300]) == 0
    # 0.2 ln(0.9 / 0.7) - 0.2 ln(0.1 / 0.3), by hand
    assert population_stability_index([7e6, 3e6], [9e6, 1e6]) == pytest.approx(0.27, abs=1e-3)


def test_equal_distributions_stay_far_below_the_alert() -> None:
    """On average (K - 1) (1/N + 1/M): 10 bins, 250 validation rows and the least answers."""
    rng = np.random.default_rng(1)
    found = [
        population_stability_index(
            rng.multinomial(250, [0.1] * 10), rng.multinomial(LEAST, [0.1] * 10)
        )
        for _ in range(300)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / 250 + 1 / LEAST), rel=0.15)
    assert np.quantile(found, 0.99) < 0.25


def test_a_histograms_bins_are_scikit_learns_quantiles() -> None:
    values = np.random.default_rng(2).gamma(2, size=500)
    histogram = Histogram.of(values, 10)
    reference = KBinsDiscretizer(
        10, encode="ordinal", strategy="quantile", quantile_method="inverted_cdf", subsample=None
    ).fit(values[:, None])
    assert histogram.edges == pytest.approx(reference.bin_edges_[0][1:-1])
    assert histogram.bins(values).tolist() == reference.transform(values[:, None])[:, 0].tolist()
    assert sum(histogram.counts) == 500


def test_a_figure_that_never_varied_still_drifts() -> None:
    histogram = Histogram.of(np.ones(100), 4)
    same = np.bincount(histogram.bins(np.ones(300)), minlength=3)
    fallen = np.bincount(histogram.bins(np.full(300, 2 / 3)), minlength=3)
    assert population_stability_index(histogram.counts, same) < 0.01
    assert population_stability_index(histogram.counts, fallen) > 1


def fitted(
    make_ensemble: Make, noisy: Noisy, method: str = "average", rows: int = 400
) -> tuple[Ensemble, np.ndarray]:
    outputs, truth = noisy(3, rows, len(LABELS))
    draft = make_ensemble(labels=LABELS)
    folds = np.arange(rows) % 4
    options = FusionOptions.model_validate({"method": method})
    return fit_fusion(draft, options, outputs, truth, folds).ensemble, outputs


@pytest.mark.parametrize("method", ["average", "weighted_average", "vote", "stack"])
def test_a_fit_stores_the_figures_of_its_answers(
    make_ensemble: Make, noisy: Noisy, method: str
) -> None:
    ensemble, outputs = fitted(make_ensemble, noisy, method)
    read = Ensemble.model_validate_json(ensemble.model_dump_json())
    baseline = Baseline.of(read)
    assert baseline is not None
    assert baseline == Baseline.of(ensemble)
    assert baseline.rows == 400
    assert sum(baseline.agreement.counts) == sum(baseline.labels.counts) == 400
    if method == "average":
        mean = outputs.mean(axis=0)
        winners = mean.argmax(axis=1)
        share = (outputs.argmax(axis=2) == winners).mean(axis=0)
        assert baseline.agreement == Histogram.of(share, 10)
        common = np.bincount(winners, minlength=12)
        assert baseline.labels.counts[:-1] == sorted(common, reverse=True)[:9]


def test_other_adapters_have_no_baseline_until_a_refit(make_ensemble: Make, noisy: Noisy) -> None:
    ensemble, outputs = fitted(make_ensemble, noisy)
    other = make_ensemble(labels=LABELS, changed=(1,)).model_copy(
        update={"scores": ensemble.scores}
    )
    assert Baseline.of(other) is None
    _, truth = noisy(3, 400, len(LABELS))
    again = refit_fusion(other, FusionOptions(), outputs, truth, np.arange(400) % 4)
    assert Baseline.of(again.ensemble) is not None


def figures(ensemble: Ensemble, outputs: np.ndarray) -> AnswerFigures:
    fusion = Fusion(ensemble)
    answers = fusion(outputs)
    rows = [np.arange(outputs.shape[1])] * len(outputs)
    alone = [fusion.alone(own, "m") for own in outputs]
    found = AnswerFigures.of(answers, agreement_shares(answers, alone, rows))
    assert found is not None
    return found


def test_the_window_compares_the_latest_answers_alone(make_ensemble: Make, noisy: Noisy) -> None:
    ensemble, _ = fitted(make_ensemble, noisy)
    baseline = Baseline.of(ensemble)
    assert baseline is not None
    window = Window(baseline, LABELS, size=300)
    unsure, _ = noisy(3, 299, len(LABELS), skills=(0.1, 0.1, 0.1), seed=5)
    alike, _ = noisy(3, 1000, len(LABELS), seed=6)
    window.add(figures(ensemble, unsure[:, : LEAST - 1]))
    assert window.psi() == {}
    window.add(figures(ensemble, unsure[:, LEAST - 1 :]))
    drifted = window.psi()
    assert drifted["agreement"] > 0.25
    assert drifted["entropy"] > 0.25
    for start in range(0, 1000, 7):
        window.add(figures(ensemble, alike[:, start : start + 7]))
    latest = figures(ensemble, alike[:, -300:])
    seen = np.bincount(np.digitize(latest.entropy, baseline.entropy.edges), minlength=10)
    assert window.psi()["entropy"] == pytest.approx(
        reference(np.array(baseline.entropy.counts), seen)
    )
    assert all(value < 0.25 for value in window.psi().values())
    assert window.answers == 300


def test_one_large_request_fills_the_window_with_its_last_answers(
    make_ensemble: Make, noisy: Noisy
) -> None:
    ensemble, _ = fitted(make_ensemble, noisy)
    baseline = Baseline.of(ensemble)
    assert baseline is not None
    many, _ = noisy(3, 1024, len(LABELS), seed=7)
    one, other = (Window(baseline, LABELS, size=300) for _ in range(2))
    one.add(figures(ensemble, many))
    other.add(figures(ensemble, many[:, -300:]))
    assert one.psi() == other.psi() != {}


def test_labels_that_the_baseline_seldom_saw_count_together(
    make_ensemble: Make, noisy: Noisy
) -> None:
    ensemble, _ = fitted(make_ensemble, noisy)
    baseline = Baseline.of(ensemble)
    assert baseline is not None
    rare = next(place for place, name in enumerate(LABELS) if name not in baseline.labels.names)
    shifted = np.full((3, 300, len(LABELS)), 0.01)
    shifted[:, :, rare] = 0.89
    window = Window(baseline, LABELS)
    window.add(figures(ensemble, shifted))
    expected = np.array(baseline.labels.counts)
    seen = np.zeros_like(expected)
    seen[-1] = 300
    assert window.psi()["labels"] == pytest.approx(reference(expected, seen))


def test_sets_count_each_of_their_labels_and_empty_ones_too() -> None:
    chosen = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=bool)
    answers = FusedSets(np.zeros((3, 3)), np.zeros(3), np.zeros(3), chosen)
    found = AnswerFigures.of(answers, np.ones(3))
    assert found is not None
    from serve.fusion.drift.baseline import label_counts

    assert label_counts(found.labels, np.array([0])).tolist() == [[1, 1], [0, 1], [0, 1]]


def test_members_that_were_not_asked_neither_agree_nor_disagree() -> None:
    def say(*winners: int) -> Fused:
        zeros = np.zeros(len(winners))
        return Fused(np.eye(2)[list(winners)], zeros, zeros, np.array(winners))

    shares = agreement_shares(say(0, 1), [say(0, 0), say(1)], [np.arange(2), np.array([1])])
    assert shares is not None
    assert shares.tolist() == [1.0, 0.5]
