"""A whole run: what it writes, what it refuses, and how it continues after a stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.manifest import AdapterRef, Member
from training.execution import jobs
from training.execution.run import recorded_recipe
from training.pipeline import train
from training.preparation import load_splits
from training.progress import StageProgress
from training.recipe import RecipeError, load_recipe


def test_the_bundle_is_sound_and_complete(causal_bundle: Bundle, encoder_bundle: Bundle) -> None:
    assert causal_bundle.verify() == []
    assert encoder_bundle.verify() == []
    assert causal_bundle.base_kind() == "causal"
    assert encoder_bundle.base_kind() == "encoder"
    assert [ensemble.id for ensemble in causal_bundle.ensembles()] == ["replies@1", "topics@1"]
    report = json.loads((causal_bundle.path / "report" / "metrics.json").read_text())
    assert {(entry["ensemble"], entry["data"]) for entry in report["reports"]} == {
        ("topics@1", "validation"),
        ("topics@1", "test"),
        ("replies@1", "validation"),
        ("replies@1", "test"),
    }
    page = (causal_bundle.path / "report" / "index.html").read_text()
    assert "weighted_average" in page
    curves = {curve["title"]: curve["training"] for curve in report["curves"]}
    assert set(curves) == {"base", "replies/a", "replies/b", "topics/a", "topics/a2", "topics/b"}
    assert all(curves.values())
    assert [each["ensemble"] for each in report["diversity"]] == ["topics"]


def test_the_manifest_holds_what_was_fitted_and_golden_examples(causal_bundle: Bundle) -> None:
    ensemble = causal_bundle.ensemble("topics")
    assert sum(member.weight or 0 for member in ensemble.members) == pytest.approx(1, abs=1e-5)
    assert ensemble.fusion.parameters == "fusion/topics/1/stack.json"
    assert len(ensemble.golden) == 2
    scores = ensemble.scores["validation"]
    assert 0 <= scores["best_member"] <= 1
    recipe = recorded_recipe(causal_bundle.path)
    assert recipe is not None
    held_out = load_splits(recipe, causal_bundle.path / ".choir-train").validation
    assert {golden.input for golden in ensemble.golden} <= set(held_out["text"])


def test_a_candidate_is_trained_but_in_no_ensemble(causal_bundle: Bundle) -> None:
    folder = causal_bundle.path / "candidates" / "topics-a2"
    assert (folder / "adapter_model.safetensors").is_file()
    assert [
        path.name for path in (causal_bundle.path / "adapters").iterdir() if "a2" in path.name
    ] == []
    ref = Bundle.open(causal_bundle.path).ensemble("topics").members[0].adapters[0]
    trained = (causal_bundle.adapter_dir(ref) / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter_model.safetensors").read_bytes() != trained


def test_no_member_is_trained_on_a_validation_or_test_row(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small(write_recipe, tmp_path, encoder_base)
    trained: list[set[str]] = []
    original = jobs.train_stage

    def watched(own: Any, ensemble: Any, base: Any, data: Any, stage: Any, target: Path) -> None:
        trained.append(set(data.rows["text"]))
        original(own, ensemble, base, data, stage, target)

    monkeypatch.setattr(jobs, "train_stage", watched)
    train(recipe, tmp_path / "bundle")
    splits = load_splits(load_recipe(recipe), tmp_path / "work")
    assert len(trained) == 2
    for texts in trained:
        assert not texts & set(splits.validation["text"])


class Stopped(Exception):
    """Raised in place of whatever stops a run."""


def small(write_recipe: Callable[..., Path], folder: Path, encoder_base: Path) -> Path:
    """Two members on the tiny encoder, four steps and two epochs each."""
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": 2, "batch_size": 36, "rank": 4},
        "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}],
    }
    base = {"kind": "encoder", "path": str(encoder_base)}
    return write_recipe(folder, base=base, ensembles=[ensemble])


def test_a_stopped_run_goes_on_from_the_checkpoint_and_ends_like_an_unbroken_one(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small(write_recipe, tmp_path, encoder_base)
    unbroken = train(recipe, tmp_path / "unbroken").ensemble("topics")
    steps: list[tuple[str, int]] = []

    def count(self: StageProgress, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append((self._title, state.global_step))
        if len(steps) == 7:
            raise Stopped

    monkeypatch.setattr(StageProgress, "on_step_end", count)
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "bundle")
    assert steps[-1] == ("topics/b", 3)
    resumed = train(recipe, tmp_path / "bundle", resume=True)
    # Member a is not trained again, and b continues after its first epoch.
    assert steps[7:] == [("topics/b", 3), ("topics/b", 4)]
    assert resumed.ensemble("topics").digests == unbroken.digests
    assert resumed.verify() == []


def test_a_finished_run_is_resumed_without_any_training(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small(write_recipe, tmp_path, encoder_base)
    first = train(recipe, tmp_path / "bundle").ensemble("topics")
    monkeypatch.setattr(jobs, "train_stage", lambda *_: pytest.fail("a member was trained again"))
    assert train(recipe, tmp_path / "bundle", resume=True).ensemble("topics") == first


def test_a_candidate_added_to_a_finished_bundle_is_all_that_resuming_trains(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small(write_recipe, tmp_path, encoder_base)
    first = train(recipe, tmp_path / "bundle").ensemble("topics")
    content = yaml.safe_load(recipe.read_text())
    content["ensembles"][0]["candidates"] = [{"name": "a2", "member": "a", "seed": 9}]
    recipe.write_text(yaml.safe_dump(content))
    trained: list[str] = []
    original = jobs.train_stage

    def watched(own: Any, *others: Any) -> None:
        trained.append(own.member.name)
        original(own, *others)

    monkeypatch.setattr(jobs, "train_stage", watched)
    bundle = train(recipe, tmp_path / "bundle", resume=True)
    assert trained == ["a2"]
    assert bundle.ensemble("topics") == first
    assert bundle.verify() == []
    # A swap to it can fit the fusion again: its outputs are stored beside those of the members.
    folder = bundle.path / "candidates" / "topics-a2"
    stored = bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    ref = AdapterRef(adapter="x", digest=folder_digest(folder))
    outputs = stored.outputs(Member(name="a", adapters=[ref]), rows.header.rows)
    assert outputs is not None
    assert outputs.shape == (len(rows.truth), 3)


def test_a_folder_that_is_not_empty_is_refused(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("do not touch")
    recipe = write_recipe(tmp_path)
    with pytest.raises(RecipeError, match="is not empty; give another --out, or --resume"):
        train(recipe, tmp_path / "bundle")
    with pytest.raises(RecipeError, match="holds no training run"):
        train(recipe, tmp_path / "bundle", resume=True)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.txt"]


def test_another_recipe_cannot_resume(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    with pytest.raises(RecipeError, match="recipe: seed was 3 and is 99 now"):
        train(write_recipe(tmp_path, seed=99), causal_bundle.path, resume=True)


def test_other_data_cannot_resume(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    recipe = small(write_recipe, tmp_path, encoder_base)
    train(recipe, tmp_path / "bundle")
    with (tmp_path / "train.csv").open("a") as rows:
        rows.write("one more,card,reply\n")
    with pytest.raises(RecipeError, match=r"the data is not what .* was begun with"):
        train(recipe, tmp_path / "bundle", resume=True)


def test_a_run_that_failed_on_its_data_leaves_the_folder_free(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    broken = write_recipe(tmp_path, data={"train": "none.csv"})
    with pytest.raises(RecipeError, match=r"none\.csv does not exist"):
        train(broken, tmp_path / "bundle")
    assert train(small(write_recipe, tmp_path, encoder_base), tmp_path / "bundle").verify() == []


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"kind": "encoder", "path": "nowhere"}, "does not exist"),
        ({"kind": "encoder", "path": "."}, "holds no model"),
        ({"kind": "causal", "path": "{encoder}"}, "base.kind is causal, but .* holds BertModel"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(
    base: dict[str, str],
    message: str,
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
) -> None:
    base = base | {"path": base["path"].format(encoder=encoder_base)}
    ensemble = {"name": "t", "task": "classification", "label": "label", "members": [{"name": "a"}]}
    with pytest.raises(RecipeError, match=message):
        train(write_recipe(tmp_path, base=base, ensembles=[ensemble]), tmp_path / "bundle")


def test_unknown_target_modules_are_refused(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    members = [{"name": "a", "target_modules": ["no_such_module"]}]
    ensemble = {"name": "t", "task": "classification", "label": "label", "members": members}
    base = {"kind": "encoder", "path": str(encoder_base)}
    with pytest.raises(RecipeError, match=r"member 'a': .*no_such_module"):
        train(write_recipe(tmp_path, base=base, ensembles=[ensemble]), tmp_path / "bundle")
