"""The one entry point: methods, overrides, weights, temperature, refusals and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy as scipy_entropy
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import VotingClassifier
from sklearn.preprocessing import LabelEncoder

from serve.fusion.errors import FusionError, OutputError
from serve.fusion.fuse import Fusion
from serve.manifest import Ensemble, FusionSpec, Member

METHODS = ("average", "weighted_average", "vote")


class Told(DummyClassifier):
    """A fitted classifier whose answers are given: row i of its input is row i of the answers."""

    def __init__(self, answers=None):
        super().__init__()
        self.answers = answers
        self.classes_ = np.arange(answers.shape[1])

    def predict_proba(self, X):
        return self.answers[np.asarray(X).ravel()]

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


def voting(members, weights, kind):
    """scikit-learn's VotingClassifier over members whose answers are already known."""
    told = [(f"m{index}", Told(member)) for index, member in enumerate(members)]
    ensemble = VotingClassifier(told, voting=kind, weights=weights)
    ensemble.estimators_ = [each for _, each in told]
    ensemble.le_ = LabelEncoder().fit(np.arange(members.shape[2]))
    ensemble.classes_ = ensemble.le_.classes_
    return ensemble


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_averages_are_scikit_learns_soft_voting(make_ensemble, draw, weights):
    members = draw(3, 200, 4)
    method = "weighted_average" if weights else "average"
    fused = Fusion(make_ensemble(tuple(weights or [None] * 3), method=method))(members)
    rows = np.arange(200)[:, None]
    reference = voting(members, weights, "soft")
    np.testing.assert_allclose(fused.probabilities, reference.predict_proba(rows), atol=1e-12)
    np.testing.assert_array_equal(fused.winners, reference.predict(rows))


def test_votes_are_scikit_learns_hard_voting(make_ensemble, draw):
    """With weights under which no two subsets of members tie, where the tie rules would differ."""
    members, weights = draw(4, 300, 4), [0.4, 0.3, 0.19, 0.11]
    fused = Fusion(make_ensemble(tuple(weights), method="vote"))(members)
    expected = voting(members, weights, "hard").predict(np.arange(300)[:, None])
    np.testing.assert_array_equal(fused.winners, expected)


def test_log_space_is_the_normalised_geometric_mean(make_ensemble, draw):
    members, weights = draw(3, 50, 4), np.array([0.2, 0.5, 0.3])
    fusion = Fusion(make_ensemble(tuple(weights), method="weighted_average", space="log"))
    expected = np.prod(members ** weights[:, None, None], axis=0)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fusion(members).probabilities, expected, atol=1e-12)
    plain = np.prod(members ** (1 / 3), axis=0)
    plain /= plain.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fusion(members, method="average").probabilities, plain, atol=1e-12)


def test_log_space_stands_zeros_of_opposite_members(make_ensemble):
    members = np.array([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0]]])
    fused = Fusion(make_ensemble((None, None), space="log"))(members)
    np.testing.assert_allclose(fused.probabilities, [[0.5, 0.5, 0, 0]], atol=1e-12)


def test_a_worked_example(make_ensemble):
    """Two members, weights 3:1, and temperature 2, by hand."""
    members = [[[0.9, 0.1]], [[0.5, 0.5]]]
    ensemble = make_ensemble((3, 1), labels=("x", "y"), method="weighted_average", temperature=2.0)
    fused = Fusion(ensemble)(members)
    odds = np.sqrt(0.8 / 0.2)
    np.testing.assert_allclose(fused.probabilities, [[odds / (1 + odds), 1 / (1 + odds)]])
    expected = scipy_entropy([0.8, 0.2]) - (
        0.75 * scipy_entropy([0.9, 0.1]) + 0.25 * scipy_entropy([0.5, 0.5])
    )
    np.testing.assert_allclose(fused.disagreement, [expected])
    np.testing.assert_allclose(fused.entropy, [scipy_entropy(fused.probabilities[0])])


def test_temperature_goes_with_the_method_it_was_fitted_with(make_ensemble, draw):
    members = draw(3, 20, 4)
    ensemble = make_ensemble(temperature=3.0)
    plain = Fusion(make_ensemble())
    hot = Fusion(ensemble)
    np.testing.assert_array_equal(
        hot(members, method="average").probabilities, hot(members).probabilities
    )
    assert (hot(members).entropy > plain(members).entropy).all()
    for method in ("weighted_average", "vote"):
        np.testing.assert_array_equal(
            hot(members, method=method).probabilities, plain(members, method=method).probabilities
        )
    np.testing.assert_array_equal(hot(members).disagreement, plain(members).disagreement)
    np.testing.assert_array_equal(hot(members).winners, plain(members).winners)


def test_disagreement_uses_the_weights_of_the_method(make_ensemble):
    members = [[[1.0, 0.0]], [[0.0, 1.0]]]
    fusion = Fusion(make_ensemble((0.9, 0.1), labels=("x", "y")))
    np.testing.assert_allclose(fusion(members).disagreement, np.log(2))
    unequal = scipy_entropy([0.9, 0.1])
    for method in ("weighted_average", "vote"):
        np.testing.assert_allclose(fusion(members, method=method).disagreement, unequal)


def test_request_weights_replace_the_manifests_and_need_not_be_normalised(make_ensemble, draw):
    members = draw(3, 20, 4)
    fusion = Fusion(make_ensemble((1, 0, 0), method="weighted_average"))
    np.testing.assert_allclose(fusion(members).probabilities, members[0], atol=1e-12)
    asked = fusion(members, weights={"m2": 10.0, "m0": 0, "m1": 30.0})
    np.testing.assert_allclose(
        asked.probabilities, 0.75 * members[1] + 0.25 * members[2], atol=1e-12
    )
    largest = fusion(members, weights=dict.fromkeys(("m0", "m1", "m2"), 1e308))
    np.testing.assert_allclose(largest.probabilities, members.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"m0": 1, "m1": 1, "m2": 1, "x": 1}, "no member 'x'; members are m0, m1, m2"),
        ({"m0": 1, "m1": 1}, "'m2' has no weight"),
        ({}, "has no weight"),
        ({"m0": -1, "m1": 1, "m2": 1}, "at least 0"),
        ({"m0": float("nan"), "m1": 1, "m2": 1}, "finite"),
        ({"m0": float("inf"), "m1": 1, "m2": 1}, "finite"),
        ({"m0": 0, "m1": 0, "m2": 0}, "All weights are 0"),
        ({"m0": "1", "m1": 1, "m2": 1}, "must be a number, not '1'"),
        ({"m0": True, "m1": 1, "m2": 1}, "must be a number"),
    ],
)
@pytest.mark.parametrize("method", ["weighted_average", "vote"])
def test_unsound_weights_are_refused(make_ensemble, draw, weights, reason, method):
    with pytest.raises(FusionError, match=reason):
        Fusion(make_ensemble())(draw(3, 1, 4), method=method, weights=weights)


def test_weights_are_refused_by_a_method_that_has_none(make_ensemble, draw):
    weights = {"m0": 1.0, "m1": 1.0, "m2": 1.0}
    with pytest.raises(FusionError, match=r"not for average; choose weighted_average or vote"):
        Fusion(make_ensemble())(draw(3, 1, 4), weights=weights)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("stack", "no stacker that was fitted"),
        ("product", "is not for classification"),
        ("mean", "is not known"),
    ],
)
def test_a_method_that_cannot_be_lists_those_that_can(make_ensemble, draw, method, reason):
    with pytest.raises(FusionError, match=f"{reason}.*average, weighted_average, vote"):
        Fusion(make_ensemble())(draw(3, 1, 4), method=method)


def test_generation_is_refused(make_ensemble):
    with pytest.raises(FusionError, match="token by token"):
        Fusion(make_ensemble(task="generation", labels=None))


def broken(where, value):
    def change(members):
        members[where] = value
        return members

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (broken((1, 2, 3), np.nan), "'m1' in row 2 are not finite"),
        (broken((2, 0, 0), np.inf), "'m2' in row 0 are not finite"),
        (broken((0, 4, 1), -0.1), "'m0' in row 4 are negative"),
        (broken((0, 3), 0.3), "'m0' in row 3 are not probabilities"),
        (lambda p: p[:2], "of 2 members, but 3 members"),
        (lambda p: p[:, :, :3] / p[:, :, :3].sum(-1, keepdims=True), "3 labels, but 4 labels"),
        (lambda p: p[0], r"\[members, rows, labels\], not \[5, 4\]"),
        (lambda p: np.zeros((3, 0, 0)), "no label"),
        (lambda p: p.astype(str), "must be numbers"),
        (lambda p: p.astype(object), "must be numbers"),
    ],
)
def test_unsound_probabilities_are_refused_by_member_and_row(make_ensemble, draw, change, reason):
    with pytest.raises(OutputError, match=reason):  # the members' fault, not the request's
        Fusion(make_ensemble())(change(draw(3, 5, 4)))


def test_what_a_request_gets_wrong_is_not_the_members_fault(make_ensemble, draw):
    for wrong in ({"method": "stack"}, {"weights": {"m0": 1.0}}):
        with pytest.raises(FusionError) as raised:
            Fusion(make_ensemble())(draw(3, 5, 4), **wrong)
        assert not isinstance(raised.value, OutputError)


def test_no_rows_give_no_answers(make_ensemble):
    for method in METHODS:
        fused = Fusion(make_ensemble())(np.zeros((3, 0, 4)), method=method)
        assert fused.probabilities.shape == (0, 4)
        assert fused.winners.shape == fused.entropy.shape == fused.disagreement.shape == (0,)


@st.composite
def cases(draw):
    """Weights, labels and probabilities of up to 5 members, 4 rows and 6 labels; zeros and ties
    included."""
    size = st.integers(1, 5), st.integers(1, 4), st.integers(2, 6)
    members, rows, labels = (draw(each) for each in size)
    values = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.001, 1.0)
    scores = draw(hnp.arrays(np.float64, (members, rows, labels), elements=values))
    scores[scores.sum(axis=2) == 0] = 1.0
    weights = draw(
        st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=members, max_size=members).filter(any)
    )
    names = draw(st.permutations(["f", "e", "d", "c", "b", "a"][:labels]))
    return weights, names, scores / scores.sum(axis=2, keepdims=True)


def fuse(weights, labels, probabilities, method, space="probability"):
    spec = FusionSpec(method=method, space=space)
    members = [Member(name=f"m{i}", weight=w, adapters=[]) for i, w in enumerate(weights)]
    ensemble = Ensemble(
        format=1,
        name="x",
        version=1,
        task="classification",
        members=members,
        fusion=spec,
        labels=labels,
    )
    return Fusion(ensemble)(probabilities)


EVERY = [
    *((method, "probability") for method in METHODS),
    ("average", "log"),
    ("weighted_average", "log"),
]


@pytest.mark.parametrize(("method", "space"), EVERY)
@settings(max_examples=60, deadline=None)
@given(case=cases(), order=st.randoms(use_true_random=False))
def test_properties(method, space, case, order):
    weights, labels, probabilities = case
    fused = fuse(weights, labels, probabilities, method, space)
    np.testing.assert_allclose(fused.probabilities.sum(axis=1), 1, atol=1e-9)
    assert (fused.probabilities >= 0).all()
    limit = np.log(len(labels)) + 1e-9
    assert ((fused.entropy >= 0) & (fused.entropy <= limit)).all()
    assert ((fused.disagreement >= 0) & (fused.disagreement <= limit)).all()

    mixed = list(range(len(weights)))
    order.shuffle(mixed)
    again = fuse([weights[i] for i in mixed], labels, probabilities[mixed], method, space)
    np.testing.assert_allclose(again.probabilities, fused.probabilities, atol=1e-9)
    np.testing.assert_allclose(again.disagreement, fused.disagreement, atol=1e-9)
    if method == "vote":
        np.testing.assert_array_equal(again.winners, fused.winners)

    alone = fuse([1.0], labels, probabilities[:1], method, space)
    chosen = np.take_along_axis(probabilities[0], alone.winners[:, None], axis=1)[:, 0]
    # Not argmax itself: rounding may turn an exact tie of the member's either way.
    np.testing.assert_allclose(chosen, probabilities[0].max(axis=1), atol=1e-12)
    np.testing.assert_allclose(alone.disagreement, 0, atol=1e-9)
    if method != "vote":
        np.testing.assert_allclose(alone.probabilities, probabilities[0], atol=1e-12)
