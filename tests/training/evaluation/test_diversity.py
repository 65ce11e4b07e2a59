"""How members differ, against scikit-learn and numpy; and what a member is worth."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from serve.bundle import Bundle
from serve.fusion.fitting.options import FusionOptions
from tests.training.report.stored import label_outputs, stored_bundle
from training.evaluation.diversity import Diversity, diversity_of
from training.evaluation.validation_answers import ValidationAnswers


def measured(bundle: Bundle, name: str = "intents") -> tuple[ValidationAnswers, Diversity]:
    answers = ValidationAnswers.read(bundle, bundle.ensemble(name))
    assert answers is not None
    return answers, diversity_of(answers)


def names(labels: int) -> list[str]:
    return [f"l{number}" for number in range(labels)]


def test_disagreement_and_error_correlation_are_those_of_numpy_and_scikit_learn(
    tmp_path: Path,
) -> None:
    outputs, truth = label_outputs(3, 300, 6)
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(6)))
    winners = outputs.argmax(axis=2)
    apart = [[1 - accuracy_score(one, other) for other in winners] for one in winners]
    np.testing.assert_allclose(found.disagreement, apart, atol=1e-12)
    wrong = (winners != truth).astype(float)
    np.testing.assert_allclose(
        np.array(found.error_correlation, dtype=float), np.corrcoef(wrong), atol=1e-9
    )
    assert found.oracle == pytest.approx((winners == truth).any(axis=0).mean())


def test_a_member_that_is_never_wrong_has_no_error_correlation(tmp_path: Path) -> None:
    outputs, truth = label_outputs(2, 60, 4, skill=1.0)
    outputs[0] = 0.01
    outputs[0, np.arange(60), truth] = 0.97
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(4)))
    assert found.error_correlation[0] == [None, None]
    assert found.error_correlation[1][1] == pytest.approx(1.0)
    assert found.oracle == 1.0


def test_leaving_a_member_out_is_what_the_others_give_by_themselves(tmp_path: Path) -> None:
    outputs, truth = label_outputs(3, 250, 5)
    options = FusionOptions(method="average", temperature=False)
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(5), options=options))
    whole = log_loss(truth, outputs.mean(axis=0), labels=range(5))
    assert found.criterion == "log_loss"
    assert found.value == pytest.approx(whole)
    for place, removal in enumerate(found.removals):
        rest = np.delete(outputs, place, axis=0).mean(axis=0)
        assert removal.loss == pytest.approx(log_loss(truth, rest, labels=range(5)) - whole)
        assert removal.interval[0] <= removal.loss <= removal.interval[1]


def test_a_harmful_member_is_warned_of_and_an_equal_one_is_not(tmp_path: Path) -> None:
    outputs, truth = label_outputs(3, 400, 5, skill=4.0)
    random = np.random.default_rng(5).permutation(400)
    outputs[1] = outputs[1][random]  # answers other rows' questions, and is sure of them
    options = FusionOptions(method="average", temperature=False)
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(5), options=options))
    assert [removal.helps for removal in found.removals] == [False, True, False]
    assert "without b the ensemble is better" in found.warnings[0]
    assert "better without b" in found.line()


def test_accuracy_as_the_criterion_is_worse_when_lower(tmp_path: Path) -> None:
    outputs, truth = label_outputs(3, 300, 5, skill=2.0)
    options = FusionOptions(method="average", criterion="accuracy")
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(5), options=options))
    whole = accuracy_score(truth, outputs.mean(axis=0).argmax(axis=1))
    rest = accuracy_score(truth, outputs[1:].mean(axis=0).argmax(axis=1))
    assert found.value == pytest.approx(whole)
    assert found.removals[0].loss == pytest.approx(whole - rest)


def test_a_vote_is_judged_by_its_answers(tmp_path: Path) -> None:
    outputs, truth = label_outputs(3, 200, 4, skill=2.0)
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(4), method="vote"))
    assert found.criterion == "accuracy"
    assert 0 < found.value <= 1
    assert all(abs(removal.loss) < 1 for removal in found.removals)


def test_sets_of_labels_and_values_are_compared_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.random((200, 3)) < 0.4
    outputs = np.clip(truth * 0.6 + 0.2 + random.normal(0, 0.25, (2, 200, 3)), 0.01, 0.99)
    bundle = stored_bundle(
        tmp_path / "sets", outputs, truth, task="multilabel", labels=["x", "y", "z"]
    )
    answers, sets = measured(bundle)
    chosen = [answers.members[name].chosen for name in ("a", "b")]  # type: ignore[union-attr]
    assert sets.disagreement[0][1] == pytest.approx((chosen[0] != chosen[1]).any(axis=1).mean())
    values = random.normal(size=200)
    told = values + random.normal(0, 0.3, (2, 200))
    bundle = stored_bundle(tmp_path / "values", told, values, task="regression")
    _, regression = measured(bundle)
    assert regression.oracle is None
    assert regression.disagreement[0][1] == pytest.approx(
        np.sqrt(np.mean((told[0] - told[1]) ** 2))
    )
    residuals = np.corrcoef(told - values)
    assert regression.error_correlation[0][1] == pytest.approx(residuals[0, 1])
    assert regression.value == pytest.approx(np.mean((told.mean(axis=0) - values) ** 2))


def test_a_single_member_has_nothing_to_disagree_on(tmp_path: Path) -> None:
    outputs, truth = label_outputs(1, 50, 3)
    _, found = measured(stored_bundle(tmp_path, outputs, truth, labels=names(3)))
    assert found.removals == []
    assert "one member" in found.line()
