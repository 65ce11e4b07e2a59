"""The leaderboard of a trained bundle: figures as scikit-learn computes them, on rows that no fit has seen."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, log_loss

from serve.bundle import Bundle
from serve.fusion.answers import choose_answer, member_scores
from serve.fusion.fitting.stored_scores import ValidationRows
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import EarlyExit, Ensemble, Extract, TextMethod
from tests.serve.world import World, committed
from training.evaluation.evaluation import labelled
from training.evaluation.metrics.text import text_metrics
from training.execution.run import WORK, recorded_recipe
from training.leaderboard.board import Leaderboard, read_board
from training.leaderboard.leaderboard import Judging
from training.leaderboard.rungs import rung_file
from training.leaderboard.timing import Input
from training.leaderboards import take
from training.offline.members import OfflineMembers
from training.preparation import load_splits
from training.progress import Unwatched
from training.recipe import RecipeError


class Watchmaker:
    """A timer whose figures follow from the rungs' sizes."""

    asked: Sequence[Input] = ()
    problem: str | None = None

    def milliseconds(
        self, bundle: Bundle, rungs: Mapping[str, Ensemble], inputs: Sequence[Input]
    ) -> dict[str, float]:
        self.asked = inputs
        return {name: 2.5 * len(each.members) for name, each in rungs.items() if name != "vote"}


@pytest.fixture(scope="module")
def timer() -> Watchmaker:
    return Watchmaker()


@pytest.fixture(scope="module")
def board(encoder_bundle: Bundle, timer: Watchmaker) -> Leaderboard:
    return Judging(encoder_bundle, "topics", Unwatched()).leaderboard(timer=timer)


def test_the_board_has_every_rung_and_is_in_the_bundle(
    board: Leaderboard, encoder_bundle: Bundle, timer: Watchmaker
) -> None:
    early = board.rung("average-early")
    assert (early.kind, early.milliseconds) == ("fusion", 5.0)
    assert 1 <= early.passes <= 2
    others = [rung for rung in board.rungs if rung is not early]
    assert {rung.name: (rung.kind, rung.passes, rung.milliseconds) for rung in others} == {
        "a": ("member", 1, 2.5),
        "b": ("member", 1, 2.5),
        "single": ("single", 1, 2.5),
        "average": ("fusion", 2, 5.0),
        "weighted_average": ("fusion", 2, 5.0),
        "vote": ("fusion", 2, None),
        "stack": ("fusion", 2, 5.0),
    }
    assert (board.ensemble, board.metric, board.rows) == ("topics", "log_loss", 30)
    assert board.rung("vote").behind_best is None
    assert [r.name for r in board.rungs if r.behind_best and r.behind_best.p == 1]
    assert len(timer.asked) == 30
    assert read_board(encoder_bundle.path, "topics") == board
    assert encoder_bundle.verify() == []


def test_rungs_that_are_as_they_were_keep_their_times(
    board: Leaderboard, encoder_bundle: Bundle
) -> None:
    assert Judging(encoder_bundle, "topics", Unwatched()).leaderboard() == board


@pytest.mark.parametrize("name", ["a", "single", "average", "weighted_average", "stack"])
def test_a_rungs_manifest_gives_the_figures_of_the_board(
    board: Leaderboard, encoder_bundle: Bundle, name: str
) -> None:
    manifest, answers, truth = served(encoder_bundle, name)
    labels = range(len(manifest.labels or []))
    scores = board.rung(name).scores
    assert scores["log_loss"] == pytest.approx(
        log_loss(truth, answers.probabilities, labels=labels)
    )
    assert scores["accuracy"] == accuracy_score(truth, answers.winners)


async def test_every_rung_of_the_board_can_be_swapped_in(
    board: Leaderboard, encoder_bundle: Bundle, world: World
) -> None:
    bundle = world.folder / "bundle"
    shutil.copytree(encoder_bundle.path, bundle)
    first = bundle / "ensembles" / "topics" / "1.json"
    # The fake engine does not know the answers to golden inputs.
    first.write_text(json.dumps({**json.loads(first.read_text()), "golden": []}))
    world.bundles = [Bundle.open(bundle)]
    await world.start()
    for version, rung in enumerate(board.rungs, 2):
        manifest = json.loads(rung_file(encoder_bundle, "topics", rung.name).read_text())
        rollout = committed(await world.ask({"manifest": manifest}, name="topics"))
        assert rollout.to_version == version
        held = world.engines[0].held[f"topics@{version}"].ensemble
        assert len(held.members) == np.ceil(rung.passes)


def test_early_exit_is_judged_by_the_answers_of_those_members_that_it_asks(
    board: Leaderboard, encoder_bundle: Bundle
) -> None:
    manifest, outputs, truth = asked(encoder_bundle, "average-early")
    fit = manifest.scores["selective"]["early_exit"]
    passed = [bound <= 0.05 for bound in fit["bounds"]]
    least = fit["thresholds"][sum(passed) - 1] if any(passed) else 2.0
    names = [member.name for member in manifest.members]
    right = []
    for row, label in enumerate(truth):
        for count in range(1, len(fit["order"]) + 1):
            first = [names.index(name) for name in fit["order"][:count]]
            mean = outputs[first, row].mean(axis=0)
            if mean.max() >= least:
                break
        right.append(mean.argmax() == label)
    assert board.rung("average-early").scores["accuracy"] == pytest.approx(np.mean(right))


def test_auto_takes_early_exit_although_members_and_method_are_the_same(
    board: Leaderboard, encoder_bundle: Bundle, tmp_path: Path
) -> None:
    """The first version is the average of all members, which `average-early` asks one after another."""
    shutil.copytree(encoder_bundle.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    average, early = (
        json.loads(rung_file(bundle, "topics", name).read_text())
        for name in ("average", "average-early")
    )
    average["scores"]["search"] = {"topics": {"rank": 4}}
    (bundle.path / "ensembles" / "topics" / "1.json").write_text(json.dumps(average))
    recipe = recorded_recipe(bundle.path)
    own = recipe.find("topics") if recipe else None
    assert own is not None
    recipe_with_golden = own.model_copy(update={"golden": 3})
    for name, versions in (("average", 1), ("average-early", 2)):
        recommended = board.model_copy(update={"recommended": name})
        take(recommended, recipe_with_golden, bundle)
        assert bundle.ensemble("topics").version == versions
    served = bundle.ensemble("topics")
    assert served.fusion.early_exit == EarlyExit(risk=early["fusion"]["early_exit"]["risk"])
    assert served.scores["search"] == {"topics": {"rank": 4}}, "distilling goes on from it"
    assert served.golden
    assert bundle.verify() == []


def test_validation_figures_are_those_of_rows_that_the_temperature_was_not_fitted_on(
    board: Leaderboard, encoder_bundle: Bundle
) -> None:
    ensemble = encoder_bundle.ensemble("topics")
    stored = encoder_bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    outputs = [stored.outputs(member, rows.header.rows) for member in ensemble.members]
    a, b = (each for each in outputs if each is not None)
    for name, pooled in {"a": a, "b": b, "average": (a + b) / 2}.items():
        held_out = np.empty_like(pooled)
        for fold in np.unique(rows.folds):
            own = rows.folds == fold
            held_out[own] = tempered(
                pooled[own], temperature_by_hand(pooled[~own], rows.truth[~own])
            )
        expected = log_loss(rows.truth, held_out, labels=range(3))
        assert board.rung(name).validation["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_bundle_that_keeps_no_validation_rows_is_refused_in_a_sentence(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(encoder_bundle.path, copy)
    shutil.rmtree(copy / "fusion" / "topics" / "validation")
    with pytest.raises(RecipeError, match="keeps no validation rows of topics@1"):
        Judging(Bundle.open(copy), "topics", Unwatched()).leaderboard()


def test_too_few_validation_rows_are_refused_in_a_sentence(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(encoder_bundle.path, copy)
    stored = Bundle.open(copy).validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    stored.write_rows(ValidationRows(rows.header, rows.truth[:9], rows.folds[:9]))
    with pytest.raises(RecipeError, match=r"has 9 validation rows.*validation_fraction"):
        Judging(Bundle.open(copy), "topics", Unwatched()).leaderboard()


def test_rungs_of_generation_are_texts(causal_bundle: Bundle) -> None:
    board = Judging(causal_bundle, "replies", Unwatched()).leaderboard()
    names = {rung.name for rung in board.rungs}
    assert {"a", "b", "single", "average", "product", "vote", "mbr", "stack"} <= names
    assert 2 <= board.rung("stack").passes <= 4, "members write, and score answers that differ"
    stacked = json.loads(rung_file(causal_bundle, "replies", "stack").read_text())["fusion"]
    assert stacked["model"] == "linear_regression"
    assert json.loads((causal_bundle.path / stacked["parameters"]).read_text())["bonus"]
    assert (board.metric, board.rows) == ("bleu", 6)
    assert board.rung("single").scores in [board.rung(name).scores for name in ("a", "b")]
    manifest = json.loads(rung_file(causal_bundle, "replies", "product").read_text())
    assert manifest["fusion"]["method"] == "product"
    assert causal_bundle.verify() == []


@pytest.mark.parametrize("method", ["vote", "mbr"])
def test_a_rung_that_chooses_among_answers_serves_what_was_judged(
    causal_bundle: Bundle, method: TextMethod
) -> None:
    """Ties go to the member with the best score, and what is compared is what the recipe says."""
    board = Judging(causal_bundle, "replies", Unwatched()).leaderboard()
    file = rung_file(causal_bundle, "replies", method)
    rung = Ensemble.model_validate_json(file.read_bytes())
    first = causal_bundle.ensemble("replies")
    assert first.fusion.extract is None, "it is fused at every token"
    assert rung.fusion.extract == Extract(regex=r"\w+")
    assert member_scores(rung) == member_scores(first)
    recipe = recorded_recipe(causal_bundle.path)
    own = recipe.find("replies") if recipe else None
    assert recipe is not None
    assert own is not None
    test = load_splits(recipe, causal_bundle.path / WORK).test
    assert test is not None
    rows = labelled(test, "test", recipe, own)
    written = OfflineMembers(causal_bundle, rung).answers(rows.texts, own.max_new_tokens)
    texts = [each[choose_answer(rung, each, method).winner] for each in zip(*written, strict=True)]
    once = np.ones((1, len(texts)))
    bleu = text_metrics(texts, rows.references)["bleu"](once)[0]
    assert board.rung(method).scores["bleu"] == pytest.approx(bleu)


def test_rows_of_a_file_leave_the_reports_board_as_it_was(
    board: Leaderboard, encoder_bundle: Bundle, tmp_path: Path
) -> None:
    rows = tmp_path / "few.csv"
    rows.write_text("text,label\nnew card,card\nsend money,transfer\n")
    other = Judging(encoder_bundle, "topics", Unwatched()).leaderboard(rows)
    assert other.rows == 2
    assert read_board(encoder_bundle.path, "topics") == board


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def temperature_by_hand(pooled: np.ndarray, truth: np.ndarray) -> float:
    def loss(temperature: float) -> float:
        return float(log_loss(truth, tempered(pooled, temperature), labels=range(3)))

    options = {"xatol": 1e-9}
    return float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options=options).x)


def served(bundle: Bundle, rung: str) -> tuple[Ensemble, Fused, np.ndarray]:
    """The manifest in the bundle, what it answers to the test rows, and the right answers."""
    manifest, outputs, truth = asked(bundle, rung)
    answers = Fusion.from_manifest(manifest, bundle.fusion_path(manifest))(outputs)
    assert isinstance(answers, Fused)
    return manifest, answers, truth


def asked(bundle: Bundle, rung: str) -> tuple[Ensemble, np.ndarray, np.ndarray]:
    """The manifest in the bundle, what its members say to the test rows, and the right answers."""
    manifest = Ensemble.model_validate_json(rung_file(bundle, "topics", rung).read_bytes())
    recipe = recorded_recipe(bundle.path)
    assert recipe is not None
    own = recipe.find("topics")
    test = load_splits(recipe, bundle.path / WORK).test
    assert own is not None
    assert test is not None
    rows = labelled(test, "test", recipe, own)
    outputs = OfflineMembers(bundle, manifest).outputs(rows.texts)
    return manifest, outputs, np.asarray(rows.targets(manifest))
