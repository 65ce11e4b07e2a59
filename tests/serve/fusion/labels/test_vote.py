"""The tie rule of voting, by hand."""

import numpy as np
import pytest

from serve.fusion.labels.vote import vote

LABELS = ("delta", "alpha", "charlie")


def winner(members, weights=None, labels=LABELS):
    members = np.array(members)[:, None, :]
    n = len(members)
    weights = np.full(n, 1 / n) if weights is None else np.array(weights)
    shares, winners = vote(members, weights, labels)
    return labels[winners[0]], shares[0].tolist()


def test_the_share_of_votes_is_reported_whatever_the_probabilities():
    label, shares = winner([[0.4, 0.35, 0.25], [0.4, 0.35, 0.25], [0.0, 0.0, 1.0]])
    assert label == "delta"
    assert shares == pytest.approx([2 / 3, 0, 1 / 3])


def test_a_tie_goes_to_the_highest_sum_of_probabilities():
    assert winner([[0.6, 0.3, 0.1], [0.05, 0.9, 0.05]])[0] == "alpha"
    assert winner([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1]])[0] == "delta"


def test_the_sum_that_breaks_a_tie_is_unweighted():
    """Weights tie at 0.5; weighting the sums would make 'delta' win by the first member's 0.55."""
    members = [[0.55, 0.45, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]]
    assert winner(members, [0.25, 0.5, 0.25])[0] == "delta"
    members = [[0.55, 0.45, 0.0], [0.1, 0.9, 0.0], [0.6, 0.4, 0.0]]
    assert winner(members, [0.25, 0.5, 0.25])[0] == "alpha"


def test_equal_sums_go_to_the_label_that_sorts_first():
    members = [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]
    assert winner(members)[0] == "alpha"
    assert winner(members, labels=("a", "b", "c"))[0] == "a"
    assert winner(members, labels=("é", "z", "c"))[0] == "z"


def test_the_label_that_sorts_first_must_be_among_the_tied():
    """'alpha' sorts before both and has the highest sum, but no votes."""
    members = [[0.5, 0.49, 0.01], [0.01, 0.49, 0.5]]
    assert winner(members)[0] == "charlie"


def test_totals_within_rounding_tie():
    """0.1 + 0.2 is more than 0.3 in floating point; the sums must decide all the same."""
    members = [[0.51, 0.49, 0.0], [0.51, 0.49, 0.0], [0.0, 1.0, 0.0]]
    assert winner(members, [0.1, 0.2, 0.3])[0] == "alpha"
