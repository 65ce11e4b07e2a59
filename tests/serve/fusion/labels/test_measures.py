"""Entropy and disagreement, against SciPy."""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from serve.fusion.labels.measures import disagreement, entropy


def test_entropy_is_scipys_in_nats(draw):
    (rows,) = draw(1, 50, 6)
    np.testing.assert_allclose(entropy(rows), scipy_entropy(rows, axis=1), atol=1e-12)
    np.testing.assert_array_equal(entropy(np.eye(3)), [0, 0, 0])


def test_disagreement_of_two_is_the_jensen_shannon_divergence(draw):
    members = draw(2, 50, 6)
    expected = jensenshannon(members[0], members[1], axis=1) ** 2
    np.testing.assert_allclose(disagreement(members, np.array([0.5, 0.5])), expected, atol=1e-12)


def test_disagreement_is_the_mean_divergence_from_the_mean(draw):
    members, weights = draw(3, 50, 4), np.array([0.2, 0.5, 0.3])
    mean = np.tensordot(weights, members, axes=1)
    gaps = [scipy_entropy(member, mean, axis=1) for member in members]
    expected = np.tensordot(weights, gaps, axes=1)
    np.testing.assert_allclose(disagreement(members, weights), expected, atol=1e-12)
