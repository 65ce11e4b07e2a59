import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.bundle import Bundle
from serve.fusion.asking.asking import asked_offline
from serve.fusion.asking.choice import asking_for
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import Abstain, EarlyExit, Ensemble
from tests.training.conftest import write_rows
from training.data.loading import load_rows
from training.evaluation.evaluation import (
    Evaluation,
    Labelled,
    evaluate_bundle,
    generation_report,
)
from training.offline.members import OfflineMembers
from training.progress import Unwatched
from training.recipe import RecipeError


def test_members_and_every_fusion_method_stand_side_by_side(
    causal_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "new.csv", 15)
    evaluate_bundle(causal_bundle.path, "topics", file, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {(row["kind"], row["name"]): row["scores"] for row in report["rows"]}
    assert list(rows) == [
        ("member", "a"),
        ("member", "b"),
        ("fusion", "average"),
        ("fusion", "weighted_average"),
        ("fusion", "vote"),
        ("fusion", "stack"),
        ("baseline", "tfidf_svc"),
    ]
    [served] = [row["name"] for row in report["rows"] if row["served"]]
    assert served == causal_bundle.ensemble("topics").fusion.method
    shown = capsys.readouterr().out
    assert "topics@1" in shown
    assert all(name in shown for _, name in rows)

    table = load_rows([file], ["text", "label"]).rows
    ensemble = causal_bundle.ensemble("topics")
    probabilities = OfflineMembers(causal_bundle, ensemble).outputs(table["text"])
    labels = np.array(ensemble.labels)
    expected = (
        labels[probabilities.mean(axis=0).argmax(axis=1)] == np.array(table["label"])
    ).mean()
    assert rows["fusion", "average"]["accuracy"] == pytest.approx(expected)
    gaps = {(gap["name"], gap["over"]): gap for gap in report["differences"]}
    gap = gaps["average", "tfidf_svc"]
    assert gap["metric"] == "accuracy"
    assert gap["value"] == pytest.approx(expected - rows["baseline", "tfidf_svc"]["accuracy"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert 0 < gap["p"] <= 1
    for (method, over), each in gaps.items():
        line = f"{method} over the {over}: {each['value']:+.4f} accuracy"
        assert (line in shown) == (method == served), "the others are in the report"


def test_without_a_file_the_recipes_test_rows_are_used(
    causal_bundle: Bundle, tmp_path: Path
) -> None:
    evaluate_bundle(causal_bundle.path, "replies", None, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["data"], report["count"]) == ("test", 6)
    names = [row["name"] for row in report["rows"]]
    assert names == ["a", "b", "average", "product", "vote", "mbr", "stack"]
    figures = {"exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL"}
    for row in report["rows"]:
        assert figures < set(row["scores"])
        assert set(row["scores"]) - figures <= {"meteor", "meteor_exact_stem"}
        assert set(row["intervals"]) == set(row["scores"])
        low, high = row["intervals"]["bleu"]
        assert low <= row["scores"]["bleu"] <= high
    assert report["signatures"]["bleu"].startswith("nrefs:1|")


def test_the_served_row_stops_early_and_abstains_as_the_server_does(
    causal_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    draft = causal_bundle.ensemble("topics")
    count = len(draft.labels or [])
    truth = rng.integers(0, count, 600)
    knows = rng.uniform(0, 4, (2, 600, 1)) * np.eye(count)[truth]
    scores = np.exp(knows + rng.normal(size=(2, 600, count)))
    outputs = scores / scores.sum(axis=2, keepdims=True)
    options = FusionOptions(
        method="average",
        candidates=["average"],
        early_exit=EarlyExit(risk=0.05),
        abstain=Abstain(risk=0.1),
    )
    ensemble = fit_fusion(draft, options, outputs, truth, np.arange(600) % 5).ensemble
    rows = Labelled(["x"] * 600, [(draft.labels or [])[place] for place in truth], "new")
    evaluation = Evaluation(causal_bundle, ensemble, Unwatched())
    monkeypatch.setattr(evaluation, "outputs", lambda _: outputs)
    served = evaluation.report(ensemble, rows).served()

    fusion = Fusion(ensemble)
    asking = asking_for(fusion, 600)
    answers = asked_offline(asking, outputs)
    assert isinstance(answers, Fused)
    assert served.scores["accuracy"] == pytest.approx(np.mean(answers.winners == truth))
    assert 1 < served.passes < 2
    assert served.passes == pytest.approx(asking.asked.sum() / 600, abs=1e-3)
    least = fusion.selective.abstain(None, None, own=True)
    assert served.scores["coverage"] == pytest.approx(
        np.mean(answers.probabilities.max(axis=1) >= least)
    )


def test_answers_are_written_once_and_kept_rows_are_not_read_again(
    causal_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise AssertionError("the rows are kept")

    monkeypatch.setattr("training.evaluation.evaluation.load_splits", gone)
    evaluate_bundle(causal_bundle.path, "replies", None, tmp_path / "report.json")

    def again(*_: object) -> None:
        raise AssertionError("the answers are kept")

    monkeypatch.setattr(OfflineMembers, "written", again)
    monkeypatch.setattr(OfflineMembers, "fused_written", again)
    evaluate_bundle(causal_bundle.path, "replies", None, tmp_path / "second.json")
    assert (tmp_path / "second.json").read_text() == (tmp_path / "report.json").read_text()
    rows = tmp_path / "new.csv"
    rows.write_text("text,reply\nanother question,We look at it.\n")
    with pytest.raises(AssertionError, match="the answers are kept"):
        evaluate_bundle(causal_bundle.path, "replies", rows, None)


def test_what_chooses_among_whole_answers_is_judged_by_the_answers_that_it_serves() -> None:
    members = [{"name": name, "adapters": []} for name in "abc"]
    ensemble = Ensemble.model_validate(
        {
            "format": 1,
            "name": "replies",
            "version": 1,
            "task": "generation",
            "members": members,
            "fusion": {"method": "mbr"},
        }
    )
    right = "The parcel should arrive by Friday."
    answers = [
        ["The weather is fine.", "yes"],
        ["Your parcel should arrive on Friday.", "no"],
        [right, "no"],
    ]
    rows = Labelled.replies(["where is my parcel?", "is it lost?"], [right, "no"], "new")
    fused = {"average": ["It is.", "no"]}
    report = generation_report(ensemble, rows, answers, fused)
    exact = {row.name: row.scores["exact_match"] for row in report.rows if row.kind == "fusion"}
    assert exact == {"average": 0.5, "vote": 0.5, "mbr": 1.0}
    assert report.served().name == "mbr"


def test_a_warning_says_that_rows_are_split_differently_than_in_training(
    causal_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(causal_bundle.path, copy)
    evaluate_bundle(copy, "topics", None, None)
    assert "Warning" not in capsys.readouterr().err

    recipe = copy / ".choir-train/recipe.json"
    content = json.loads(recipe.read_text())
    content["seed"] += 1
    recipe.write_text(json.dumps(content))
    evaluate_bundle(copy, "topics", None, None)
    said = capsys.readouterr().err
    assert f"Warning: the recipe's rows are not split as they were when {copy} was trained" in said


def test_a_bundle_without_its_recipe_needs_a_file_and_says_its_columns(
    causal_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(causal_bundle.path, copy, ignore=shutil.ignore_patterns(".choir-train"))
    with pytest.raises(RecipeError, match="give --data FILE with the columns text and label"):
        evaluate_bundle(copy, "topics", None, None)


def test_a_label_that_the_ensemble_lacks_is_refused(causal_bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    file.write_text("text,label\nhello,weather\n")
    with pytest.raises(
        RecipeError, match=r"odd.csv: the label 'weather' is not one of the 3 labels"
    ):
        evaluate_bundle(causal_bundle.path, "topics", file, None)


def test_members_write_together_as_a_step_by_step_merge_says(causal_bundle: Bundle) -> None:
    """The reference is transformers alone: all members read the whole text again for each token."""
    ensemble = causal_bundle.ensemble("replies")
    offline = OfflineMembers(causal_bundle, ensemble)
    text = "where is number 3"
    [written] = offline.fused_answers([text], "average", 12)
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    models = [
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(causal_bundle.base_source, dtype=torch.float32),
            str(causal_bundle.adapter_dir(member.adapters[0])),
        ).eval()
        for member in ensemble.members
    ]
    ids = tokenizer(ensemble.template.replace("{text}", text), return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    while ids.shape[1] < start + 12:
        with torch.inference_mode():
            each = [model(ids).logits[0, -1].softmax(-1) for model in models]
        token = torch.stack(each).mean(dim=0).argmax()
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    assert written == tokenizer.decode(ids[0, start:]).strip()
