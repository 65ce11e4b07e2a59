"""Values: means, weights, spread and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import VotingRegressor

from serve.fusion.errors import FusionError
from serve.fusion.fitting.weights import greedy_weights, merit_weights
from serve.fusion.fuse import Fusion
from serve.fusion.labels.regression import RegressionRules
from serve.manifest import Ensemble, FusionSpec, Member


def ensemble(weights=(None, None, None), **fusion):
    members = [Member(name=f"m{i}", weight=w, adapters=[]) for i, w in enumerate(weights)]
    return Ensemble(
        format=1,
        name="similarity",
        version=1,
        task="regression",
        members=members,
        fusion=FusionSpec(**({"method": "average"} | fusion)),
    )


class Told:
    """A fitted regressor whose answers are given."""

    def __init__(self, answers):
        self.answers = answers

    def predict(self, X):
        return self.answers[np.asarray(X).ravel()]


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_means_are_scikit_learns(weights):
    members = np.random.default_rng(0).normal(size=(3, 50))
    reference = VotingRegressor([(f"m{i}", None) for i in range(3)], weights=weights)
    reference.estimators_ = [Told(member) for member in members]
    method = "weighted_average" if weights else "average"
    fused = Fusion(ensemble(tuple(weights or [None] * 3), method=method))(members)
    np.testing.assert_allclose(fused.values, reference.predict(np.arange(50)[:, None]))


def test_the_spread_is_the_weighted_standard_deviation():
    fusion = Fusion(ensemble((None, None)))
    plain = fusion([[1.0], [3.0]])
    assert (plain.values[0], plain.std[0]) == (2.0, 1.0)
    weighted = fusion([[1.0], [3.0]], method="weighted_average", weights={"m0": 3, "m1": 1})
    np.testing.assert_allclose(weighted.values, [1.5])
    np.testing.assert_allclose(weighted.std, [np.sqrt(0.75 * 0.5**2 + 0.25 * 1.5**2)])
    assert fusion.alone([4.0]).std[0] == 0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[1.0], [np.nan], [1.0]], "The value of the member 'm1' in row 0 is not finite"),
        ([[1.0], [1.0]], "values of 2 members, but 3"),
        ([1.0, 2.0, 3.0], r"\[members, rows\], not \[3\]"),
        ([["a"], ["b"], ["c"]], "must be numbers"),
    ],
)
def test_unsound_values_are_refused(values, reason):
    with pytest.raises(FusionError, match=reason):
        Fusion(ensemble())(values)


def test_there_is_no_vote_on_values():
    with pytest.raises(
        FusionError, match="is not for regression; possible: average, weighted_average"
    ):
        Fusion(ensemble())([[1.0]] * 3, method="vote")
    with pytest.raises(FusionError, match="not for average; choose weighted_average"):
        Fusion(ensemble())([[1.0]] * 3, weights={"m0": 1, "m1": 1, "m2": 1})
    with pytest.raises(ValueError, match="not for the values of regression"):
        ensemble(space="log")


@settings(max_examples=60, deadline=None)
@given(
    members=hnp.arrays(
        np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-1e6, 1e6)
    ),
    order=st.randoms(use_true_random=False),
)
def test_properties(members, order):
    def fuse(outputs):
        return Fusion(ensemble((None,) * len(outputs)))(outputs)

    fused = fuse(members)
    assert (fused.values >= members.min(axis=0) - 1e-6).all()
    assert (fused.values <= members.max(axis=0) + 1e-6).all()
    mixed = list(range(len(members)))
    order.shuffle(mixed)
    again = fuse(members[mixed])
    np.testing.assert_allclose(again.values, fused.values, atol=1e-6)
    np.testing.assert_allclose(again.std, fused.std, atol=1e-3)
    np.testing.assert_array_equal(fuse(members[:1]).values, members[0])


def test_weights_are_fitted_by_the_squared_error():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    members = truth + rng.normal(size=(2, 400)) * [[0.5], [1.0]]
    greedy = greedy_weights(members, truth, rules=RegressionRules(), rounds=100)
    # Independent errors are best weighted by their inverse variances, 4:1.
    np.testing.assert_allclose(greedy, [0.8, 0.2], atol=0.05)
    merit = merit_weights(members, truth, rules=RegressionRules())
    errors = ((members - truth) ** 2).mean(axis=1)
    np.testing.assert_allclose(merit, (1 / errors) / (1 / errors).sum())


def test_targets_must_be_numbers():
    with pytest.raises(FusionError, match="2 finite numbers"):
        greedy_weights([[1.0, 2.0]], [1.0, np.nan], rules=RegressionRules())
