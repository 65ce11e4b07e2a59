"""Fitted member weights, against brute force and by hand."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from serve.fusion.errors import FusionError
from serve.fusion.fitting.weights import greedy_weights, merit_weights


def reference_greedy(members, targets, rounds, metric):
    """Caruana et al. (2004), section 2.1, word by word: lists of picks, scored by scikit-learn."""
    labels = range(members.shape[2])

    def score(bag):
        pooled = np.mean([members[i] for i in bag], axis=0)
        nats = log_loss(targets, pooled, labels=labels)
        if metric == "log_loss":
            return (round(nats, 10),)
        return (-accuracy_score(targets, pooled.argmax(axis=1)), round(nats, 10))

    bag, seen = [], []
    for _ in range(rounds):
        bag = min(([*bag, i] for i in range(len(members))), key=score)
        seen.append(bag)
    best = min(seen, key=score)
    return np.bincount(best, minlength=len(members)) / len(best)


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_selection_is_the_papers(noisy, metric, seed):
    members, targets = noisy(4, 60, 3, skills=(0.5, 1.0, 1.5, 0.0), seed=seed)
    weights = greedy_weights(members, targets, metric=metric, rounds=12)
    np.testing.assert_allclose(weights, reference_greedy(members, targets, 12, metric))


def test_greedy_selection_comes_near_the_best_weights_of_a_grid(noisy):
    members, targets = noisy(3, 80, 4, skills=(1.0, 1.2, 1.4))
    weights = greedy_weights(members, targets, rounds=20)

    def loss(share):
        return log_loss(targets, np.tensordot(share, members, axes=1), labels=range(4))

    grid = (
        np.array(share) / 20 for share in itertools.product(range(21), repeat=3) if sum(share) == 20
    )
    best = min(loss(share) for share in grid)
    assert loss(weights) == pytest.approx(best, abs=2e-3)
    assert loss(weights) < min(loss(share) for share in np.eye(3))


def test_greedy_selection_can_fit_the_geometric_mean(noisy):
    members, targets = noisy(3, 80, 4, skills=(0.5, 1.0, 1.5))
    weights = greedy_weights(members, targets, space="log")

    def loss(share):
        pooled = np.exp(np.tensordot(share, np.log(members), axes=1))
        return log_loss(targets, pooled / pooled.sum(axis=1, keepdims=True), labels=range(4))

    assert loss(weights) < loss(greedy_weights(members, targets))


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_equal_members_go_to_the_first(draw, metric):
    twins = np.repeat(draw(1, 30, 3), 3, axis=0)
    targets = np.arange(30) % 3
    np.testing.assert_array_equal(greedy_weights(twins, targets, metric=metric), [1, 0, 0])


def test_a_useless_member_gets_nothing(noisy):
    members, targets = noisy(2, 200, 3, skills=(4.0, -4.0))
    np.testing.assert_array_equal(greedy_weights(members, targets), [1, 0])


def test_merit_weights_are_in_proportion():
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    members = np.array([[right] * 4, [right] * 3 + [wrong], [wrong] * 3 + [right]])
    np.testing.assert_allclose(merit_weights(members, np.zeros(4, int)), [4 / 8, 3 / 8, 1 / 8])
    hopeless = np.array([[wrong] * 2, [wrong] * 2])
    np.testing.assert_allclose(merit_weights(hopeless, np.zeros(2, int)), [0.5, 0.5])


@pytest.mark.parametrize(
    "targets", [[0, 1], [0, 1, 3], [0, -1, 1], [0.0, 1.0, 2.0], ["a", "b", "c"], [[0, 1, 2]]]
)
def test_unsound_targets_are_refused(draw, targets):
    with pytest.raises(FusionError, match="Targets must be"):
        greedy_weights(draw(2, 3, 3), targets)


def test_fitting_needs_rows():
    with pytest.raises(FusionError, match="at least one row"):
        merit_weights(np.zeros((2, 0, 3)), np.zeros(0, int))
