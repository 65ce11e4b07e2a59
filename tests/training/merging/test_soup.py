"""Soups of trained members: the average of their weights, of all or of those that help."""

import numpy as np
from sklearn.metrics import log_loss

from serve.bundle import Bundle
from serve.manifest import Ensemble
from training.leaderboard.leaderboard import Judging
from training.leaderboard.rungs import rung_file
from training.merging.lora import Recipe
from training.merging.merge import merge_ensemble
from training.merging.soup import make_soup
from training.progress import Unwatched


def test_the_uniform_soup_is_the_average_of_all_members(causal_bundle: Bundle) -> None:
    soup = make_soup(causal_bundle, "topics", "uniform_soup", 64, Unwatched())
    assert soup is not None
    assert (soup.rung, soup.rank, soup.members) == ("uniform-soup", 8, ("a", "b"))
    merged = merge_ensemble(causal_bundle, "topics", Recipe("cat"))
    assert digests(causal_bundle, soup.rung) == digests(causal_bundle, merged.rung)


def test_a_soup_that_no_engine_would_take_is_its_closest_lora(causal_bundle: Bundle) -> None:
    soup = make_soup(causal_bundle, "topics", "uniform_soup", 6, Unwatched())
    assert soup is not None
    assert soup.rank == 6


def test_the_greedy_soup_has_the_second_member_if_it_helps_on_the_validation_rows(
    causal_bundle: Bundle,
) -> None:
    """After a temperature, with the loss as scikit-learn computes it."""
    make_soup(causal_bundle, "topics", "uniform_soup", 64, Unwatched())
    board = Judging(causal_bundle, "topics", Unwatched()).leaderboard()
    rung = board.rung("uniform-soup")
    assert (rung.kind, rung.passes) == ("soup", 1)
    names = ("uniform-soup", "a", "b")
    together, *alone = (served_loss(causal_bundle, name) for name in names)

    soup = make_soup(causal_bundle, "topics", "greedy_soup", 64, Unwatched())

    assert (soup is not None) == (together <= min(alone))
    if soup is not None:
        assert digests(causal_bundle, "greedy-soup") == digests(causal_bundle, "uniform-soup")
    assert causal_bundle.verify() == []


def digests(bundle: Bundle, rung: str) -> tuple[str, ...]:
    return manifest(bundle, rung).digests


def manifest(bundle: Bundle, rung: str) -> Ensemble:
    return Ensemble.model_validate_json(rung_file(bundle, "topics", rung).read_bytes())


def served_loss(bundle: Bundle, rung: str) -> float:
    """The log loss of a rung on the validation rows, with the temperature of its manifest."""
    served = manifest(bundle, rung)
    stored = bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    outputs = stored.outputs(served.members[0], rows.header.rows)
    assert outputs is not None
    powers = outputs ** (1 / served.fusion.temperature)
    tempered = powers / powers.sum(axis=1, keepdims=True)
    return float(log_loss(rows.truth, tempered, labels=np.arange(3)))
