import numpy as np
import pytest
from numpy.typing import NDArray

from serve.bundle import AdapterRef, Ensemble, FusionSpec, Member
from serve.fusion.fuse import Fusion
from training.fitting import fit_fusion
from training.recipe import FusionRecipe


def draft(members: int, labels: int) -> Ensemble:
    names = "abcdefghijkl"[:members]
    return Ensemble(
        format=1,
        name="test",
        version=1,
        task="classification",
        labels=[f"label-{number}" for number in range(labels)],
        fusion=FusionSpec(method="average"),
        members=[
            Member(
                name=name, adapters=[AdapterRef(adapter=name, digest=f"sha256:{ord(name):064x}")]
            )
            for name in names
        ],
    )


def answers(
    accuracies: list[float], rows: int, labels: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities [M, N, C] of members that are right so often, each with errors of its own."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=rows)
    members = []
    for share in accuracies:
        said = np.where(rng.random(rows) < share, truth, rng.integers(labels, size=rows))
        members.append(
            np.full((rows, labels), 0.3 / (labels - 1))
            + np.eye(labels)[said] * (0.7 - 0.3 / (labels - 1))
        )
    return np.array(members), truth


def test_reported_figures_come_from_fits_that_did_not_see_the_row() -> None:
    """Labels that have nothing to do with the members: only a fit that saw a row could beat chance on it."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(2, 0.3), size=(12, 60))
    truth = rng.integers(2, size=60)
    fitted = fit_fusion(draft(12, 2), FusionRecipe(method="stack"), probabilities, truth, seed=0)
    assert fitted.stack is not None
    fusion = Fusion(fitted.ensemble, fitted.stack)
    seen = (fusion(probabilities, method="stack").winners == truth).mean()
    unseen = (fitted.validation["stack"].winners == truth).mean()
    assert seen > 0.65
    assert unseen < 0.6


def test_every_validation_row_is_answered_in_its_own_place() -> None:
    probabilities, truth = answers([0.9], 50, 3, seed=1)
    fitted = fit_fusion(
        draft(1, 3), FusionRecipe(method="average", temperature=False), probabilities, truth, seed=4
    )
    np.testing.assert_allclose(fitted.validation["average"].probabilities, probabilities[0])


def test_the_better_member_gets_the_larger_weight() -> None:
    probabilities, truth = answers([0.9, 0.4], 200, 4, seed=2)
    for weights in ("greedy", "accuracy"):
        recipe = FusionRecipe(method="weighted_average", weights=weights)
        fitted = fit_fusion(draft(2, 4), recipe, probabilities, truth, seed=0)
        first, second = (member.weight for member in fitted.ensemble.members)
        assert first is not None
        assert second is not None
        assert first > second


def test_temperature_belongs_to_the_method_and_repairs_its_calibration() -> None:
    probabilities, truth = answers([0.95, 0.95, 0.95], 300, 4, seed=3)
    fitted = fit_fusion(draft(3, 4), FusionRecipe(method="average"), probabilities, truth, seed=0)
    assert fitted.ensemble.fusion.method == "average"
    # The members say 0.7 where they are right far more often: the fitted temperature sharpens.
    assert fitted.ensemble.fusion.temperature < 1
    tempered = fitted.validation["average"].probabilities.max(axis=1).mean()
    assert tempered == pytest.approx(
        (fitted.validation["average"].winners == truth).mean(), abs=0.03
    )


def test_best_takes_the_candidate_with_the_best_score() -> None:
    # One good member among poor ones: an average drowns it, weights find it.
    probabilities, truth = answers([0.95, 0.3, 0.3, 0.3], 300, 3, seed=5)
    recipe = FusionRecipe(method="best", candidates=["average", "weighted_average"])
    assert (
        fit_fusion(draft(4, 3), recipe, probabilities, truth, seed=0).ensemble.fusion.method
        == "weighted_average"
    )


def test_vote_gets_no_temperature_and_no_stacker_that_was_not_asked_for() -> None:
    probabilities, truth = answers([0.9, 0.8], 60, 3, seed=6)
    fitted = fit_fusion(
        draft(2, 3),
        FusionRecipe(method="vote", candidates=["average"]),
        probabilities,
        truth,
        seed=0,
    )
    assert fitted.ensemble.fusion == FusionSpec(method="vote")
    assert fitted.stack is None


def test_a_groups_rows_are_not_judged_by_a_fit_that_saw_others_of_it() -> None:
    """Each group's rows are copies of one row: a stacker that saw one of them knows the others by heart."""
    rng = np.random.default_rng(1)
    members = rng.dirichlet(np.full(2, 0.3), size=(12, 40)).repeat(6, axis=1)
    truth = rng.integers(2, size=40).repeat(6)
    groups = [str(number) for number in range(40) for _ in range(6)]
    right = {}
    for name, known in (("apart", None), ("together", groups)):
        recipe = FusionRecipe(method="stack")
        fitted = fit_fusion(draft(12, 2), recipe, members, truth, 0, known)
        right[name] = (fitted.validation["stack"].winners == truth).mean()
    assert right["apart"] > 0.65
    assert right["together"] < 0.6
