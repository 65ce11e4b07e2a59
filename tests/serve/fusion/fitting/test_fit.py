from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score, log_loss

from serve.fusion.fitting.fit import Fitted, fit_fusion, refit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member


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


def five(truth: NDArray[Any]) -> NDArray[np.int64]:
    """Five folds, drawn at random."""
    return np.random.default_rng(0).permutation(np.arange(len(truth)) % 5)


def test_reported_figures_come_from_fits_that_did_not_see_the_row() -> None:
    """Labels that have nothing to do with the members: only a fit that saw a row could beat chance on it."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(2, 0.3), size=(12, 60))
    truth = rng.integers(2, size=60)
    fitted = fit_fusion(
        draft(12, 2), FusionOptions(method="stack"), probabilities, truth, folds=five(truth)
    )
    assert fitted.parameters is not None
    fusion = Fusion(fitted.ensemble, fitted.parameters)
    seen = (fusion(probabilities, method="stack").winners == truth).mean()
    unseen = (fitted.validation["stack"].winners == truth).mean()
    assert seen > 0.65
    assert unseen < 0.6


def test_every_validation_row_is_answered_in_its_own_place() -> None:
    probabilities, truth = answers([0.9], 50, 3, seed=1)
    fitted = fit_fusion(
        draft(1, 3),
        FusionOptions(method="average", temperature=False),
        probabilities,
        truth,
        folds=five(truth),
    )
    np.testing.assert_allclose(fitted.validation["average"].probabilities, probabilities[0])


def test_the_better_member_gets_the_larger_weight() -> None:
    probabilities, truth = answers([0.9, 0.4], 200, 4, seed=2)
    for weights in ("greedy", "accuracy"):
        recipe = FusionOptions(method="weighted_average", weights=weights)
        fitted = fit_fusion(draft(2, 4), recipe, probabilities, truth, folds=five(truth))
        first, second = (member.weight for member in fitted.ensemble.members)
        assert first is not None
        assert second is not None
        assert first > second


def test_temperature_belongs_to_the_method_and_repairs_its_calibration() -> None:
    probabilities, truth = answers([0.95, 0.95, 0.95], 300, 4, seed=3)
    fitted = fit_fusion(
        draft(3, 4), FusionOptions(method="average"), probabilities, truth, folds=five(truth)
    )
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
    recipe = FusionOptions(method="best", candidates=["average", "weighted_average"])
    assert (
        fit_fusion(
            draft(4, 3), recipe, probabilities, truth, folds=five(truth)
        ).ensemble.fusion.method
        == "weighted_average"
    )


def test_vote_gets_no_temperature_and_no_stacker_that_was_not_asked_for() -> None:
    probabilities, truth = answers([0.9, 0.8], 60, 3, seed=6)
    fitted = fit_fusion(
        draft(2, 3),
        FusionOptions(method="vote", candidates=["average"]),
        probabilities,
        truth,
        folds=five(truth),
    )
    assert fitted.ensemble.fusion == FusionSpec(method="vote")
    assert fitted.parameters is None


def test_a_groups_rows_are_not_judged_by_a_fit_that_saw_others_of_it() -> None:
    """Each group's rows are copies of one row: a stacker that saw one of them knows the others by heart."""
    rng = np.random.default_rng(1)
    members = rng.dirichlet(np.full(2, 0.3), size=(12, 40)).repeat(6, axis=1)
    truth = rng.integers(2, size=40).repeat(6)
    right = {}
    for name, known in (("apart", five(truth)), ("together", five(truth[::6]).repeat(6))):
        recipe = FusionOptions(method="stack")
        fitted = fit_fusion(draft(12, 2), recipe, members, truth, known)
        right[name] = (fitted.validation["stack"].winners == truth).mean()
    assert right["apart"] > 0.65
    assert right["together"] < 0.6


def sets_of_labels(members: int, rows: int, labels: int) -> tuple[NDArray[np.float64], Any]:
    """Probabilities [M, N, C] that lean towards the truth [N, C], and are too low."""
    rng = np.random.default_rng(7)
    truth = rng.random((rows, labels)) < 0.3
    scores = rng.normal(-1.5, 1, size=(members, rows, labels))
    scores += np.array([2.0, 0.8])[:members, None, None] * truth
    return 1 / (1 + np.exp(-scores)), truth


def values(members: int, rows: int) -> tuple[NDArray[np.float64], Any]:
    rng = np.random.default_rng(8)
    truth = rng.normal(size=rows)
    return truth + rng.normal(scale=[[0.2], [0.8]][:members], size=(members, rows)), truth


CASES: list[tuple[str, dict[str, Any]]] = [
    ("classification", {"method": "best"}),
    ("classification", {"method": "stack"}),
    ("classification", {"method": "weighted_average", "space": "log"}),
    ("classification", {"method": "vote", "candidates": ["average"]}),
    ("multilabel", {"method": "average", "criterion": "micro_f1"}),
    ("multilabel", {"method": "stack", "thresholds": "label", "stack": "gradient_boosting"}),
    ("regression", {"method": "weighted_average", "weights": "accuracy"}),
    ("regression", {"method": "stack"}),
]


def case(task: str, options: dict[str, Any]) -> tuple[Ensemble, FusionOptions, Any, Any]:
    """A draft of two members, what is to be fitted, and rows."""
    said, truth = {
        "classification": lambda: answers([0.9, 0.6], 120, 3, seed=9),
        "multilabel": lambda: sets_of_labels(2, 120, 3),
        "regression": lambda: values(2, 120),
    }[task]()
    labels = None if task == "regression" else draft(2, 3).labels
    own = draft(2, 3).model_copy(update={"task": task, "labels": labels})
    return own, FusionOptions(**options), said, truth


def content(fitted: Fitted) -> str | None:
    return fitted.parameters.content() if fitted.parameters else None


@pytest.mark.parametrize(("task", "options"), CASES)
def test_fitting_again_on_the_same_rows_changes_nothing(task: str, options: dict[str, Any]) -> None:
    own, chosen, said, truth = case(task, options)
    first = fit_fusion(own, chosen, said, truth, five(truth))
    again = refit_fusion(first.ensemble, chosen, said, truth, five(truth))
    assert again.ensemble == first.ensemble
    assert content(again) == content(first)


@pytest.mark.parametrize(("task", "options"), CASES)
def test_fitting_again_forgets_what_was_fitted_before(task: str, options: dict[str, Any]) -> None:
    """Other members' outputs: the same as a fit from scratch by the method that the manifest has."""
    own, chosen, said, truth = case(task, options)
    first = fit_fusion(own, chosen, said, truth, five(truth))
    other = said[::-1].copy()
    again = refit_fusion(first.ensemble, chosen, other, truth, five(truth))
    method = {"method": first.ensemble.fusion.method, "candidates": chosen.candidates}
    scratch = fit_fusion(own, chosen.model_copy(update=method), other, truth, five(truth))
    assert again.ensemble == scratch.ensemble
    assert content(again) == content(scratch)
    assert again.ensemble.members != first.ensemble.members


def test_thresholds_are_those_of_the_best_f1() -> None:
    own, options, said, truth = case("multilabel", {"method": "average"})
    fitted = refit_fusion(own, options, said, truth, five(truth))
    (cut,) = set(fitted.ensemble.thresholds.values())
    pooled = said.mean(axis=0)
    reached = f1_score(truth, pooled >= cut, average="micro")
    best = max(
        f1_score(truth, pooled >= each, average="micro") for each in np.unique(pooled).tolist()
    )
    assert reached == pytest.approx(best)
    assert cut != 0.5


def test_a_temperature_in_log_space_is_that_of_the_geometric_mean() -> None:
    said, truth = answers([0.9, 0.6], 200, 3, seed=10)
    options = FusionOptions(method="average", space="log")
    fitted = fit_fusion(draft(2, 3), options, said, truth, five(truth))

    def loss(temperature: float) -> float:
        powers = np.sqrt(said[0] * said[1]) ** (1 / temperature)
        return float(log_loss(truth, powers / powers.sum(axis=1, keepdims=True)))

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
    assert fitted.ensemble.fusion.temperature == pytest.approx(best, abs=1e-3)


def test_what_no_recipe_asked_for_is_fitted_where_the_manifest_has_it() -> None:
    own, _, said, truth = case("multilabel", {})
    none = FusionOptions(method="average", thresholds="none")
    assert refit_fusion(own, none, said, truth, five(truth)).ensemble.thresholds == {}
    by_hand = own.model_copy(update={"thresholds": {"label-0": 0.9, "label-1": 0.4}})
    found = refit_fusion(by_hand, none, said, truth, five(truth)).ensemble.thresholds
    assert set(found) == set(own.labels or [])
    assert len(set(found.values())) > 1
