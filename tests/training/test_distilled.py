"""`choir distil`: one adapter of an ensemble, from its recorded run, as a rung that a manifest serves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset
from typer.testing import CliRunner

from choir_cli.main import app
from serve.bundle import Bundle
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.manifest import FusionSpec
from tests.training.conftest import TOPICS
from training.data.variations import variations
from training.distilled import DistilOptions, answered, distil
from training.execution.run import recorded_recipe
from training.leaderboard.rungs import read_rungs
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.progress import Unwatched
from training.recipe import RecipeError

TEXTS = [ask for asks in TOPICS.values() for ask in asks]


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path], encoder_base: Path
) -> Bundle:
    """Two weak members, each of which knows a third of the labels better than the other."""
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "rank": 4},
        "members": [
            {"name": "a", "seed": 1, "rows": {"column": "label", "values": ["card", "top_up"]}},
            {"name": "b", "seed": 2, "rows": {"column": "label", "values": ["transfer", "card"]}},
        ],
        "fusion": {"method": "average"},
        "golden": 2,
    }
    folder = tmp_path_factory.mktemp("taught")
    base = {"kind": "encoder", "path": str(encoder_base)}
    return train(write_recipe(folder, base=base, ensembles=[ensemble]), folder / "bundle")


@pytest.fixture
def bundle(taught: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(taught.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def probabilities(bundle: Bundle, manifest: Any, texts: list[str]) -> np.ndarray:
    answers = Fusion(manifest)(OfflineMembers(bundle, manifest).outputs(texts))
    assert isinstance(answers, Fused)
    return answers.probabilities


def test_a_student_answers_like_the_ensemble_at_one_pass(bundle: Bundle) -> None:
    """No member knows all labels, so only what the ensemble answers can teach one adapter all of them."""
    arguments = ["distil", str(bundle.path), "--ensemble", "topics", "--epochs", "20"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    [rung] = read_rungs(bundle, "topics")
    assert (rung.name, rung.kind) == ("distilled", "distilled")
    assert bundle.verify() == []
    [student] = rung.manifest.members
    assert student.name == "distilled"
    fused = probabilities(bundle, bundle.ensemble("topics"), TEXTS)
    own = probabilities(bundle, rung.manifest, TEXTS)
    assert (own.argmax(axis=1) == fused.argmax(axis=1)).mean() > 0.8
    assert "It keeps" in said.output
    command = f"choir swap topics --manifest {bundle.path}/rungs/topics/distilled.json"
    assert command in said.output.replace("\n", "")


def test_texts_without_labels_are_learned_from_too(bundle: Bundle, tmp_path: Path) -> None:
    """The student answers texts like the teacher that it was asked about, though no row has a label for them."""
    file = tmp_path / "more.csv"
    new = variations(TEXTS, 3, seed=5)
    file.write_text("\n".join(["text", *new]) + "\n")
    fused = probabilities(bundle, bundle.ensemble("topics"), new)

    def distance(rows: Path | None) -> float:
        made = distil(bundle.path, "topics", rows, DistilOptions(8, 0, hard=0.0), Unwatched())
        manifest = json.loads(made.manifest.read_text())
        assert manifest["scores"]["rung"]["kind"] == "distilled"
        [rung] = read_rungs(bundle, "topics")
        return float(np.abs(probabilities(bundle, rung.manifest, new) - fused).mean())

    assert distance(file) < distance(None)


def test_a_student_of_generation_is_a_rung_with_figures(
    causal_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(causal_bundle.path, copy)
    made = distil(copy, "replies", None, DistilOptions(2, 0), Unwatched())
    assert made.metrics == ("bleu", "chrf")
    assert {*made.scores} == {"best", "ensemble", "distilled"}
    bundle = Bundle.open(copy)
    assert bundle.verify() == []
    [rung] = read_rungs(bundle, "replies")
    assert [member.name for member in rung.manifest.members] == ["distilled"]


def test_the_student_of_generation_reads_what_the_ensemble_writes(causal_bundle: Bundle) -> None:
    ensemble = causal_bundle.ensemble("replies")
    recipe = recorded_recipe(causal_bundle.path)
    own = recipe.find("replies") if recipe else None
    assert recipe is not None
    assert own is not None
    rows = Dataset.from_dict({"text": [*TEXTS, TEXTS[0]]})
    taught = answered(causal_bundle, ensemble, recipe, own, rows, Unwatched())
    written = OfflineMembers(causal_bundle, ensemble).fused_answers(TEXTS, "average", 8)
    expected = [pair for pair in zip(TEXTS, written, strict=True) if pair[1]]
    assert list(zip(taught["text"], taught["reply"], strict=True)) == expected


@pytest.mark.parametrize(("task", "column"), [("multilabel", "tags"), ("regression", "length")])
def test_students_of_sets_and_values_come_closer_to_the_ensemble(
    task: str, column: str, tmp_path: Path, encoder_base: Path
) -> None:
    """The member that the student goes on from has seen a third of the rows."""
    rows = []
    for number in range(120):
        asks = [ask for own in TOPICS.values() for ask in own]
        text = f"{asks[number % len(asks)]} number {number}"
        tags = "|".join(tag for tag, asks in TOPICS.items() if text.startswith(tuple(asks)))
        rows.append(f"{text},{tags},{len(text.split()[0]) / 10},{number % 3}")
    (tmp_path / "train.csv").write_text("\n".join(["text,tags,length,part", *rows]) + "\n")
    recipe = {
        "name": "taught",
        "seed": 1,
        "precision": "float32",
        "base": {"kind": "encoder", "path": str(encoder_base)},
        "data": {"train": "train.csv", "validation_fraction": 0.25},
        "ensembles": [
            {
                "name": "taught",
                "task": task,
                "label" if task == "multilabel" else "target": column,
                "defaults": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "rank": 4},
                "members": [
                    {"name": name, "rows": {"column": "part", "values": [value]}}
                    for name, value in (("a", "0"), ("b", "1"))
                ],
                "fusion": {"method": "average"},
            }
        ],
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    bundle = train(file, tmp_path / "bundle")
    made = distil(bundle.path, "taught", None, DistilOptions(6, 1, hard=0.0), Unwatched())
    assert bundle.verify() == []
    [rung] = read_rungs(bundle, "taught")
    ensemble = bundle.ensemble("taught")
    outputs = OfflineMembers(bundle, ensemble).outputs(TEXTS)
    [own] = OfflineMembers(bundle, rung.manifest).outputs(TEXTS)
    start = [member.name for member in ensemble.members].index(made.best)
    fused = outputs.mean(axis=0)
    assert np.abs(own - fused).mean() < np.abs(outputs[start] - fused).mean()


def test_all_members_teach_although_one_alone_is_served(bundle: Bundle) -> None:
    """As after `method: auto`, whose recommendation may be a single member."""
    whole = bundle.ensemble("topics")
    single = {"version": 2, "members": whole.members[:1], "fusion": FusionSpec(method="average")}
    bundle.write_ensemble(whole.model_copy(update=single))
    made = distil(bundle.path, "topics", None, DistilOptions(1, 0), Unwatched())
    assert made.passes == 2


def test_what_cannot_be_distilled_is_refused(bundle: Bundle) -> None:
    options = DistilOptions(1, 0)
    whole = bundle.ensemble("topics")
    first = bundle.path / "ensembles" / "topics" / "1.json"
    first.unlink()
    bundle.write_ensemble(whole.model_copy(update={"members": whole.members[:1]}))
    with pytest.raises(RecipeError, match=r"topics@1 has one member, 'a', which answers at one"):
        distil(bundle.path, "topics", None, options, Unwatched())
    first.unlink()
    bundle.write_ensemble(whole)
    state = bundle.path / ".choir-train" / "state.json"
    steps = json.loads(state.read_text())
    steps["steps"]["data"] = "sha256:0"
    state.write_text(json.dumps(steps))
    with pytest.raises(RecipeError, match=r"the recipe's rows are not those that .* was trained"):
        distil(bundle.path, "topics", None, options, Unwatched())
    shutil.rmtree(bundle.path / ".choir-train")
    with pytest.raises(RecipeError, match=r"does not say which rows topics@1 was trained on"):
        distil(bundle.path, "topics", None, options, Unwatched())
    assert read_rungs(bundle, "topics") == []
