"""Sets of labels: averages, votes, thresholds and properties, each label being a yes or no of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit
from scipy.stats import bernoulli
from sklearn.metrics import f1_score

from serve.fusion.errors import FusionError
from serve.fusion.fitting.thresholds import common_threshold, label_thresholds
from serve.fusion.fitting.weights import greedy_weights
from serve.fusion.fuse import Fusion
from serve.fusion.labels.measures import label_log_loss, micro_f1
from serve.fusion.labels.multilabel import MultilabelRules
from serve.manifest import Ensemble, FusionSpec, Member

LABELS = ("x", "y", "z")
METHODS = ("average", "weighted_average", "vote")


def ensemble(weights=(None, None, None), labels=LABELS, thresholds=None, **fusion):
    members = [Member(name=f"m{i}", weight=w, adapters=[]) for i, w in enumerate(weights)]
    return Ensemble(
        format=1,
        name="tags",
        version=1,
        task="multilabel",
        members=members,
        fusion=FusionSpec(**({"method": "average"} | fusion)),
        labels=list(labels),
        thresholds=thresholds or {},
    )


def test_a_worked_example():
    """Two members, weights 3:1, by hand: probabilities need not sum to 1, and z is at its threshold."""
    members = [[[0.9, 0.8, 0.2]], [[0.5, 0.4, 0.6]]]
    fusion = Fusion(ensemble((3, 1), thresholds={"x": 0.9, "z": 0.3}, method="weighted_average"))
    fused = fusion(members)
    np.testing.assert_allclose(fused.probabilities, [[0.8, 0.7, 0.3]])
    np.testing.assert_array_equal(fused.chosen, [[False, True, True]])
    nats = [bernoulli(p).entropy() for p in (0.8, 0.7, 0.3)]
    np.testing.assert_allclose(fused.entropy, [sum(nats)])
    own = [
        0.75 * bernoulli(p).entropy() + 0.25 * bernoulli(q).entropy()
        for p, q in zip(*np.array(members)[:, 0], strict=True)
    ]
    np.testing.assert_allclose(fused.disagreement, [sum(nats) - sum(own)])


def test_log_space_is_the_mean_of_the_log_odds():
    rng = np.random.default_rng(0)
    members, weights = rng.uniform(0.01, 0.99, size=(3, 20, 3)), np.array([0.2, 0.5, 0.3])
    fused = Fusion(ensemble(tuple(weights), method="weighted_average", space="log"))(members)
    expected = expit(np.tensordot(weights, logit(members), axes=1))
    np.testing.assert_allclose(fused.probabilities, expected, atol=1e-12)


def test_a_vote_takes_the_labels_of_more_than_half_of_the_votes():
    members = [[[0.9, 0.9, 0.1]], [[0.6, 0.1, 0.1]], [[0.1, 0.2, 0.7]]]
    fused = Fusion(ensemble(method="vote"))(members)
    np.testing.assert_allclose(fused.probabilities, [[2 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_array_equal(fused.chosen, [[True, False, False]])
    heavy = Fusion(ensemble(method="vote"))(members, weights={"m0": 1, "m1": 1, "m2": 3})
    np.testing.assert_array_equal(heavy.chosen, [[False, False, True]])


def test_members_vote_by_the_manifests_thresholds():
    members = [[[0.4, 0.4, 0.4]], [[0.35, 0.35, 0.35]], [[0.1, 0.1, 0.1]]]
    fused = Fusion(ensemble(method="vote", thresholds={"y": 0.3}))(members)
    np.testing.assert_array_equal(fused.chosen, [[False, True, False]])


def test_a_tie_of_votes_goes_by_the_members_average():
    members = [[[0.9, 0.6, 0.5]], [[0.3, 0.1, 0.5]]]
    fused = Fusion(ensemble((None, None), method="vote"))(members)
    np.testing.assert_allclose(fused.probabilities, [[0.5, 0.5, 1.0]])
    np.testing.assert_array_equal(fused.chosen, [[True, False, True]])


def test_one_member_alone_answers_by_the_thresholds():
    fusion = Fusion(ensemble(thresholds={"x": 0.2}))
    alone = fusion.alone([[0.3, 0.3, 0.5]])
    np.testing.assert_array_equal(alone.chosen, [[True, False, True]])
    np.testing.assert_array_equal(alone.disagreement, [0])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (np.full((3, 2, 3), np.nan), "'m0' in row 0 are not finite"),
        (np.full((3, 2, 3), -0.1), "negative"),
        (np.full((3, 2, 3), 1.1), "above 1"),
        (np.zeros((3, 2, 2)), "2 labels, but 3 labels"),
        (np.zeros((2, 2, 3)), "of 2 members, but 3"),
        (np.zeros((3, 2)), r"\[members, rows, labels\], not \[3, 2\]"),
    ],
)
def test_unsound_probabilities_are_refused(members, reason):
    with pytest.raises(FusionError, match=reason):
        Fusion(ensemble())(members)


def test_no_rows_give_no_answers():
    for method in METHODS:
        assert Fusion(ensemble())(np.zeros((3, 0, 3)), method=method).chosen.shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(
    members=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 4), st.just(3)),
        elements=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
    ),
    method=st.sampled_from(
        [("average", "probability"), ("average", "log"), ("vote", "probability")]
    ),
    order=st.randoms(use_true_random=False),
)
def test_properties(members, method, order):
    name, space = method

    def fuse(outputs):
        return Fusion(ensemble((None,) * len(outputs), method=name, space=space))(outputs)

    fused = fuse(members)
    assert ((fused.probabilities >= 0) & (fused.probabilities <= 1)).all()
    assert (fused.disagreement >= 0).all()
    assert (fused.entropy <= 3 * np.log(2) + 1e-9).all()
    mixed = list(range(len(members)))
    order.shuffle(mixed)
    again = fuse(members[mixed])
    np.testing.assert_allclose(again.probabilities, fused.probabilities, atol=1e-9)
    np.testing.assert_allclose(again.disagreement, fused.disagreement, atol=1e-9)
    alone = fuse(members[:1])
    np.testing.assert_array_equal(alone.chosen, members[0] >= 0.5)
    if name != "vote":
        np.testing.assert_allclose(alone.probabilities, members[0], atol=1e-9)


def test_the_log_loss_sums_over_labels_and_averages_over_rows():
    """-log 0.8 = 0.223 for a true label of probability 0.8, -log 0.9 = 0.105 for a false one of 0.1."""
    assert label_log_loss(np.array([[0.8]]), np.array([[True]])) == pytest.approx(0.223, abs=5e-4)
    assert label_log_loss(np.array([[0.1]]), np.array([[False]])) == pytest.approx(0.105, abs=5e-4)
    two = label_log_loss(np.array([[0.8, 0.1]]), np.array([[True, False]]))
    assert two == pytest.approx(-np.log(0.8) - np.log(0.9))


def tagged(rows=400, labels=6, skills=(2.0, 1.0, 0.5), seed=0):
    """Members [M, N, C] that know sets with their skill, and the sets [N, C]."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, labels)) < np.linspace(0.05, 0.5, labels)
    scores = rng.normal(size=(len(skills), rows, labels)) - 1
    scores += np.array(skills)[:, None, None] * np.where(truth, 1.5, -0.5)
    return expit(scores), truth


def test_the_f1_that_thresholds_are_fitted_by_is_scikit_learns():
    members, truth = tagged()
    chosen = members[0] >= 0.3
    assert micro_f1(chosen, truth) == pytest.approx(f1_score(truth, chosen, average="micro"))


def test_a_common_threshold_is_the_best_one():
    members, truth = tagged(rows=60)
    found = common_threshold(members[0], truth)
    best = max(f1_score(truth, members[0] >= cut, average="micro") for cut in np.unique(members[0]))
    assert f1_score(truth, members[0] >= found, average="micro") == pytest.approx(best)
    assert not (members[0] == found).any(), "it lies between two probabilities"


def test_each_label_gets_the_threshold_of_its_own_best_f1():
    members, truth = tagged(rows=80)
    truth[:, 1] = False
    cuts = label_thresholds(members[0], truth)
    for label in (0, 2, 3, 4, 5):
        column = members[0][:, label]
        best = max(f1_score(truth[:, label], column >= cut) for cut in np.unique(column))
        assert f1_score(truth[:, label], column >= cuts[label]) == pytest.approx(best)
    assert cuts[1] == common_threshold(members[0], truth), "a label that no row has"


def test_thresholds_of_labels_that_nothing_tells_apart_are_plain():
    assert common_threshold(np.full((4, 2), 0.5), np.zeros((4, 2))) == 0.5
    with pytest.raises(FusionError, match="4 rows of 2 zeros and ones"):
        common_threshold(np.full((4, 2), 0.5), np.full((4, 2), 2))


@pytest.mark.parametrize("metric", ["log_loss", "micro_f1"])
def test_weights_find_the_better_member(metric):
    members, truth = tagged(skills=(2.0, 0.2))
    rules = MultilabelRules([f"l{i}" for i in range(6)], {})
    first, second = greedy_weights(members, truth, rules=rules, metric=metric)
    assert first > second
