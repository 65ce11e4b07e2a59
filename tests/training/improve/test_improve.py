"""Next steps: their gains against scikit-learn, their trials against the training itself, and what is left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import log_loss
from typer.testing import CliRunner

from choir_cli.main import app
from serve.bundle import Bundle
from serve.fusion.fitting.options import FusionOptions
from tests.training.report.stored import label_outputs, stored_bundle
from training.evaluation.evaluation import Labelled
from training.evaluation.validation_answers import ValidationAnswers
from training.execution.run import WORK, recorded_recipe
from training.improve.case import Case, ImproveError
from training.improve.fusing import FewerMembers, MoreMembers, OtherMethod
from training.improve.judged import JudgedLabels, Unmeasured
from training.improve.run import next_steps
from training.improve.step import gain
from training.improve.task import MergedLabels
from training.improve.trials import Trials
from training.leaderboard.validation import validation_texts
from training.offline.members import OfflineMembers
from training.preparation import load_splits
from training.progress import Unwatched
from training.stages.base import Base

PLAIN = FusionOptions(method="average", temperature=False)
LABELS = [f"l{number}" for number in range(5)]


def stored_case(folder: Path, members: int = 4, skill: float = 2.0) -> Case:
    outputs, truth = label_outputs(members, 300, 5, skill=skill)
    bundle = stored_bundle(folder, outputs, truth, labels=LABELS, options=PLAIN)
    ensemble = bundle.ensemble("intents")
    answers = ValidationAnswers.read(bundle, ensemble)
    assert answers is not None
    return Case(bundle, ensemble, JudgedLabels(answers), "there is no recipe here")


def stored(case: Case) -> ValidationAnswers:
    assert isinstance(case.judged, JudgedLabels)
    return case.judged.answers


def loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    return float(log_loss(truth, probabilities, labels=range(probabilities.shape[1])))


def test_merged_labels_are_judged_with_their_probabilities_added(tmp_path: Path) -> None:
    case = stored_case(tmp_path)
    finding = MergedLabels(0).measure(case)
    averaged, truth = stored(case).outputs.mean(axis=0), stored(case).truth
    said = averaged.argmax(axis=1)
    errors = {
        (one, other): np.sum(
            np.isin(truth, (one, other)) & np.isin(said, (one, other)) & (said != truth)
        )
        for one in range(5)
        for other in range(one + 1, 5)
    }
    one, other = max(errors, key=lambda pair: errors[pair])
    merged = np.delete(averaged, other, axis=1)
    merged[:, one] += averaged[:, other]
    right = np.where(truth == other, one, truth)
    right = right - (right > other)
    assert finding.step == f"merge l{one} and l{other}"
    assert f"{errors[one, other]} errors" in finding.compared
    assert finding.gain.value == pytest.approx(loss(averaged, truth) - loss(merged, right))
    assert finding.gain.low <= finding.gain.value <= finding.gain.high
    assert finding.minutes is None


def test_a_member_left_out_is_the_one_that_is_worth_least(tmp_path: Path) -> None:
    case = stored_case(tmp_path)
    outputs, truth = stored(case).outputs, stored(case).truth
    whole = loss(outputs.mean(axis=0), truth)
    gains = [whole - loss(np.delete(outputs, n, axis=0).mean(axis=0), truth) for n in range(4)]
    finding = FewerMembers().measure(case)
    assert finding.step == f"leave {'abcd'[int(np.argmax(gains))]} out"
    assert finding.gain.value == pytest.approx(max(gains))
    rest = [place for place in range(4) if place != np.argmax(gains)]
    alone = gain(case.judged, case.judged.served, case.judged.of(rest))
    assert finding.gain.p == min(1.0, 4 * alone.p), "it is the best of four choices"
    assert MoreMembers().measure(case).gain.value == pytest.approx(-sorted(gains)[1])


def test_methods_are_compared_where_they_can_be(tmp_path: Path) -> None:
    case = stored_case(tmp_path)
    assert OtherMethod("weighted_average").measure(case).minutes == 0
    assert OtherMethod("stack").measure(case).compared.startswith("the ensemble")
    with pytest.raises(Unmeasured, match="already"):
        OtherMethod("average").measure(case)
    with pytest.raises(Unmeasured, match="no log loss"):
        OtherMethod("vote").measure(case)
    with pytest.raises(Unmeasured, match="name gate among"):
        OtherMethod("gate").measure(case)
    with pytest.raises(Unmeasured, match="there is one member"):
        OtherMethod("stack").measure(stored_case(tmp_path / "one", members=1))


def trials_of(bundle: Bundle, deadline: float = float("inf")) -> Trials:
    recipe = recorded_recipe(bundle.path)
    assert recipe is not None
    own = recipe.ensembles[0]
    served = bundle.ensemble(own.name)
    base = Base(Path(bundle.base_source), recipe.base.kind, recipe.name, recipe.base.by_heads)
    splits = load_splits(recipe, bundle.path / WORK)
    labels = served.labels or []
    answers = ValidationAnswers.read(bundle, served)
    assert answers is not None
    judged, member = JudgedLabels(answers), own.members[0]
    return Trials(recipe, own, judged, member, labels, base, splits, deadline, Unwatched())


def test_a_trial_on_all_rows_is_the_training_itself(encoder_bundle: Bundle) -> None:
    trials = trials_of(encoder_bundle)
    again, member = trials.judged(trials.splits.train), trials.judge.member("a")
    each_row = np.eye(trials.judge.rows)
    np.testing.assert_allclose(again(each_row), member(each_row), atol=1e-4)


def test_half_of_the_rows_has_every_label_and_whole_families(encoder_bundle: Bundle) -> None:
    trials = trials_of(encoder_bundle)
    half, train = trials.half(), trials.splits.train
    assert 0.4 < len(half) / len(train) < 0.6
    assert set(half["label"]) == set(train["label"])
    families = set(half["__family__"])
    assert len(half) == sum(family in families for family in train["__family__"])


def test_a_trial_that_would_be_too_long_is_not_begun(encoder_bundle: Bundle) -> None:
    trials = trials_of(encoder_bundle, deadline=0.0)
    with pytest.raises(Unmeasured, match="left of the budget; give more --minutes"):
        trials.judged(trials.splits.train)


@pytest.mark.slow
def test_all_steps_of_an_ensemble(encoder_bundle: Bundle, tmp_path: Path) -> None:
    written = tmp_path / "steps.json"
    told = ["improve", str(encoder_bundle.path), "--ensemble", "topics", "--minutes", "5"]
    result = CliRunner().invoke(app, [*told, "--json", str(written)])
    assert result.exit_code == 0, result.output
    assert "Next steps for topics: log loss is" in result.output
    assert "read the text without a template" in result.output
    steps = next_steps_in(written)
    measured = {finding["step"] for finding in steps["findings"]}
    assert {"more rows", "learning rate times 2", "rank times 2", "epochs times 2"} <= measured
    gains = [finding["gain"]["value"] for finding in steps["findings"]]
    assert gains == sorted(gains, reverse=True)
    assert all(finding["minutes"] is not None for finding in steps["findings"])


def next_steps_in(file: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(file.read_text())
    return found


def test_without_time_only_what_is_stored_is_measured(encoder_bundle: Bundle) -> None:
    steps = next_steps(encoder_bundle.path, "topics", minutes=0)
    assert {finding.area for finding in steps.findings} <= {"fusion", "task"}
    reasons = {skipped.step: skipped.reason for skipped in steps.skipped}
    assert "left of the budget" in reasons["more rows"]


def test_without_the_training_record_trials_say_why_there_are_none(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(encoder_bundle.path, copy, ignore=shutil.ignore_patterns(WORK))
    steps = next_steps(copy, "topics", minutes=5)
    reasons = {skipped.step: skipped.reason for skipped in steps.skipped}
    assert "does not hold the recipe" in reasons["more rows"]


def bleu(answers: list[str], rows: Labelled) -> float:
    """By sacrebleu, with all right replies of each text."""
    most = max(len(each) for each in rows.references)
    streams = [
        [each[n] if n < len(each) else None for each in rows.references] for n in range(most)
    ]
    return float(sacrebleu.corpus_bleu(answers, streams).score)


def test_what_members_write_together_is_compared_in_bleu(causal_bundle: Bundle) -> None:
    ensemble = causal_bundle.ensemble("replies")
    rows = validation_texts(causal_bundle, ensemble)
    members = OfflineMembers(causal_bundle, ensemble)
    steps = next_steps(causal_bundle.path, "replies", minutes=0.5)
    average = bleu(members.fused_answers(rows.texts, "average", 8), rows)
    product = bleu(members.fused_answers(rows.texts, "product", 8), rows)
    assert (steps.criterion, steps.rows) == ("bleu", len(rows.texts))
    assert steps.value == pytest.approx(average)
    gains = {each.step: each.gain.value for each in steps.findings}
    assert gains["fuse by product"] == pytest.approx(product - average, abs=1e-6)
    first, second = (bleu(each, rows) for each in members.answers(rows.texts, 8))
    left_out = {"leave a out": second, "leave b out": first}
    [(step, gained)] = [each for each in gains.items() if each[0].startswith("leave")]
    assert gained == pytest.approx(left_out[step] - average, abs=1e-6)
    assert gained == pytest.approx(max(left_out.values()) - average, abs=1e-6)


@pytest.mark.slow
def test_a_member_that_writes_is_trained_again_on_fewer_rows(causal_bundle: Bundle) -> None:
    steps = next_steps(causal_bundle.path, "replies", minutes=5)
    measured = {finding.step for finding in steps.findings}
    assert {"more rows", "learning rate times 2", "epochs times 2"} <= measured
    assert any(step.startswith("template") for step in measured)


def test_without_time_no_member_writes(causal_bundle: Bundle) -> None:
    steps = next_steps(causal_bundle.path, "replies", minutes=0)
    reasons = {skipped.step: skipped.reason for skipped in steps.skipped}
    assert "the budget is spent" in reasons["leave a member out"]


def test_bundles_without_stored_answers_are_refused(encoder_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(encoder_bundle.path, copy, ignore=shutil.ignore_patterns("fusion"))
    with pytest.raises(ImproveError, match="does not store what the members of topics answer"):
        next_steps(copy, "topics", minutes=0)
