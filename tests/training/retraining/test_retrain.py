"""One member of a finished bundle, trained anew: what is stored, what a swap makes of it, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from serve.adapter import inspect_adapter
from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.fusion.fuse import Fusion
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Golden, Member
from serve.protocol.views import EnsembleView
from tests.serve.fakes import FakeEngine
from tests.serve.world import World, committed
from tests.training.conftest import REPLIES, TOPICS, recipe_content
from training.evaluation.evaluation import Labelled
from training.execution import jobs
from training.execution.held_rows import kept
from training.execution.run import WORK
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.progress import StageProgress
from training.recipe import RecipeError
from training.retraining.golden import wrong_golden
from training.retraining.retrain import retrain


def newer(file: Path, count: int = 48, more: tuple[str, ...] = ()) -> Path:
    """Rows that no split of the bundles has, and `more` lines."""
    lines = ["text,label,reply"]
    for number in range(count):
        label = list(TOPICS)[number % len(TOPICS)]
        lines.append(f"{TOPICS[label][number % 2]} once more {number},{label},{REPLIES[label]}")
    file.write_text("\n".join([*lines, *more]) + "\n")
    return file


def copied(bundle: Bundle, folder: Path) -> Path:
    """A copy of a bundle with its recipe, and without the rows that it was trained on."""
    shutil.copytree(bundle.path, folder / "bundle")
    shutil.copyfile(bundle.path.parent / "recipe.yaml", folder / "recipe.yaml")
    return folder / "recipe.yaml"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(bundle: Bundle, ensemble: str, folders: list[Path]) -> np.ndarray:
    """The outputs of a member with the adapters in these folders."""
    scores = bundle.validation_scores(ensemble)
    rows = scores.rows()
    assert rows is not None
    refs = [AdapterRef(adapter="x", digest=folder_digest(folder)) for folder in folders]
    outputs = scores.outputs(Member(name="m", adapters=refs), rows.header.rows)
    assert outputs is not None
    return outputs


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and WORK not in path.parts
    }


async def test_a_member_trained_on_newer_rows_is_swapped_in_with_a_fusion_of_its_own(
    causal_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that the bundle was trained on are gone. Only vLLM is faked."""
    recipe = copied(causal_bundle, tmp_path)
    assert not (tmp_path / "train.csv").exists()
    held = kept(tmp_path / "bundle" / WORK, "validation")
    assert held is not None
    leak = f"{held['text'][0]},{held['label'][0]},x"
    read: set[str] = set()
    original = jobs.train_stage

    def watched(own: Any, ensemble: Any, base: Any, data: Any, stage: Any, target: Path) -> None:
        read.update(data.rows["text"])
        original(own, ensemble, base, data, stage, target)

    monkeypatch.setattr(jobs, "train_stage", watched)
    before = files(tmp_path / "bundle")

    data = newer(tmp_path / "new.csv", more=(leak,))
    found = retrain(recipe, "a", tmp_path / "bundle", data, "topics")

    assert len(read) > 20
    assert all("once more" in text for text in read), "old rows, or a validation row, were read"
    quarantine = tmp_path / "bundle" / WORK / "retraining" / "topics" / "a" / "data"
    [left] = (quarantine / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(left)["step"] == "leakage"
    [folder] = found.folders
    assert folder.parent == (tmp_path / "bundle" / "adapters" / "topics-a").resolve()
    assert folder.name == folder_digest(folder).removeprefix("sha256:")[:12]
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.verify() == []
    after = files(bundle.path)
    assert {name: after[name] for name in before} == before, "what is served was changed"
    # What is stored is what PEFT and transformers answer.
    alone = bundle.ensemble("topics")
    ref = AdapterRef(adapter="topics-a", digest=folder_digest(folder))
    members = [alone.members[0].model_copy(update={"adapters": [ref]})]
    alone = alone.model_copy(update={"members": members})
    [said] = OfflineMembers(bundle, alone).outputs(list(held["text"]))
    np.testing.assert_allclose(stored(bundle, "topics", [folder]), said, atol=1e-6)

    world = World(tmp_path)
    world.bundles = [bundle]
    world.slots = 20
    await world.start(engines=0)
    engine = FakeEngine(world.slots)
    trained = bundle.ensemble("topics")
    engine.answers = {str(golden.input): golden.label for golden in trained.golden}
    await world.add_engine(engine)
    command = f"choir swap topics a={folder.as_uri()}"
    assert found.swap == command
    committed(await world.ask({"members": {"a": folder.as_uri()}}, "topics"))
    view = await world.controller.ensemble("topics")
    assert isinstance(view, EnsembleView)
    assert view.fusion_fit.state == "refitted"
    await world.stop()


@pytest.mark.parametrize(
    ("bundle_name", "ensemble", "member"),
    [
        ("encoder_bundle", "topics", "b"),
        ("soft_bundle", "topics", "prefix"),
        ("soft_bundle", "topics", "lora-prompt"),
        pytest.param("chain_bundle", "student", "a", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_member_is_trained_anew(
    request: pytest.FixtureRequest, tmp_path: Path, bundle_name: str, ensemble: str, member: str
) -> None:
    trained: Bundle = request.getfixturevalue(bundle_name)
    recipe = copied(trained, tmp_path)
    found = retrain(recipe, member, tmp_path / "bundle", newer(tmp_path / "new.csv"), ensemble)
    [own] = (each for each in trained.ensemble(ensemble).members if each.name == member)
    before = [trained.adapter_dir(ref) for ref in own.adapters]
    kinds = [inspect_adapter(folder).kind for folder in found.folders]
    assert kinds == [inspect_adapter(folder).kind for folder in before]
    assert not {folder.name for folder in found.folders} & {folder.name for folder in before}
    outputs = stored(Bundle.open(tmp_path / "bundle"), ensemble, [*found.folders])
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)
    assert found.swap.count(f"{member}=file://") == len(before)
    assert [figure.before is not None for figure in found.figures] == [True, True]


def test_figures_are_those_of_the_bundles_report_before_and_of_the_new_member_now(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    recipe = copied(encoder_bundle, tmp_path)
    found = retrain(recipe, "a", tmp_path / "bundle", newer(tmp_path / "new.csv"))
    report = json.loads((encoder_bundle.path / "report" / "metrics.json").read_text())
    rows = report["reports"][0]["rows"]
    assert report["reports"][0]["data"] == "validation"
    before = {row["name"]: row["scores"]["accuracy"] for row in rows}
    served = encoder_bundle.ensemble("topics").fusion.method
    assert [figure.before for figure in found.figures] == [before["a"], before[served]]
    bundle = Bundle.open(tmp_path / "bundle")
    outputs = stored(bundle, "topics", [*found.folders])
    held = bundle.validation_scores("topics").rows()
    assert held is not None
    right = float(np.mean(outputs.argmax(axis=1) == held.truth))
    assert found.figures[0].now == pytest.approx(right)
    line = found.figures[0].line()
    assert line.startswith(f"a on {len(held.truth)} validation rows: accuracy {right:.4f}, before")


def test_a_member_that_writes_is_trained_anew_and_nothing_is_refitted(
    causal_bundle: Bundle, tmp_path: Path
) -> None:
    recipe = copied(causal_bundle, tmp_path)
    fitted = tmp_path / "bundle" / "fusion" / "replies"
    before = contents(fitted)
    found = retrain(recipe, "b", tmp_path / "bundle", newer(tmp_path / "new.csv"), "replies")
    assert [figure.metric for figure in found.figures] == ["bleu", "bleu"]
    assert contents(fitted) == before
    assert found.swap.startswith("choir swap replies b=file://")


def test_on_its_own_rows_by_the_same_recipe_a_member_becomes_what_it_was(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    """The seed and the bag are the recipe's. Another seed makes another adapter, on the same rows."""
    recipe = copied(encoder_bundle, tmp_path)
    content = yaml.safe_load(recipe.read_text())
    content["data"] = {
        key: str(encoder_bundle.path.parent / value) if key in ("train", "test") else value
        for key, value in content["data"].items()
    }
    recipe.write_text(yaml.safe_dump(content))
    [ref] = encoder_bundle.ensemble("topics").members[0].adapters
    again = retrain(recipe, "a", tmp_path / "bundle")
    assert [folder_digest(folder) for folder in again.folders] == [ref.digest]
    assert again.unchanged
    content["ensembles"][0]["members"][0]["seed"] = 77
    recipe.write_text(yaml.safe_dump(content))
    other = retrain(recipe, "a", tmp_path / "bundle")
    assert not other.unchanged


def test_golden_inputs_that_would_be_answered_otherwise_are_named() -> None:
    """A server would refuse the swap."""
    labels = ["card", "transfer"]
    golden = [Golden(input="first", label="card"), Golden(input="second", label="transfer")]
    ensemble = Ensemble(
        format=1,
        name="topics",
        version=1,
        task="classification",
        members=[Member(name="a", adapters=[])],
        fusion=FusionSpec(method="average"),
        labels=labels,
        golden=[*golden, Golden(input="of another time", label="card")],
    )
    rows = Labelled(["zeroth", "second", "first"], ["card", "card", "card"], "validation")
    said = np.array([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]])
    assert wrong_golden(ensemble, rows, Fusion(ensemble)(said)) == ["second"]


class Stopped(Exception):
    """Raised in place of whatever stops a run."""


def test_a_stopped_retraining_goes_on_or_begins_anew_and_spoils_nothing(
    encoder_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = copied(encoder_bundle, tmp_path)
    data, bundle = newer(tmp_path / "new.csv"), tmp_path / "bundle"
    whole = retrain(recipe, "a", bundle, data)
    digests = [folder_digest(folder) for folder in whole.folders]
    shutil.rmtree(bundle)
    shutil.copytree(encoder_bundle.path, bundle)
    before = files(bundle)
    steps: list[int] = []

    def count(self: StageProgress, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        if len(steps) == 4:
            raise Stopped

    monkeypatch.setattr(StageProgress, "on_step_end", count)
    with pytest.raises(Stopped):
        retrain(recipe, "a", bundle, data)
    assert steps == [1, 2, 3, 4]
    assert files(bundle) == before
    other = newer(tmp_path / "other.csv", count=30)
    with pytest.raises(RecipeError, match="begun with other rows; leave --resume out"):
        retrain(recipe, "a", bundle, other, resume=True)
    resumed = retrain(recipe, "a", bundle, data, resume=True)
    assert steps[4:] == [4, 5, 6], "it goes on behind its first epoch"
    assert [folder_digest(folder) for folder in resumed.folders] == digests


def test_rows_with_unknown_labels_are_refused_or_set_aside_as_the_recipe_says(
    encoder_bundle: Bundle, tmp_path: Path
) -> None:
    recipe = copied(encoder_bundle, tmp_path)
    data = newer(tmp_path / "new.csv", more=("what is a loan,loans,x",))
    with pytest.raises(RecipeError, match=r"new\.csv:50: the bundle has no label 'loans'; with"):
        retrain(recipe, "a", tmp_path / "bundle", data)
    content = yaml.safe_load(recipe.read_text())
    content["data"]["clean"] = {"unseen_labels": "quarantine", "duplicates": "keep"}
    recipe.write_text(yaml.safe_dump(content))
    retrain(recipe, "a", tmp_path / "bundle", data)
    kept_out = tmp_path / "bundle" / WORK / "retraining" / "topics" / "a" / "data"
    assert "loans" in (kept_out / "quarantine.jsonl").read_text()


def _content(**changes: Any) -> dict[str, Any]:
    content = recipe_content()
    content["ensembles"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "member", "ensemble", "message"),
    [
        (_content(), "c", None, r"has no member 'c'.*; it has a, b$"),
        (_content(), "a", None, "topics, replies of .* each have a member 'a'.*--ensemble topics"),
        (_content(), "a", "topic", r"no ensemble 'topic' \(did you mean topics\?\)"),
        (_content(name="themes"), "a", "themes", "was trained without the ensemble 'themes'"),
        (_content(template="{text} is about"), "a", "topics", "template of 'topics' differs"),
        (_content(labels=["card", "transfer"]), "a", "topics", "labels of 'topics' differs"),
        (
            recipe_content(base={"kind": "causal", "scratch": {"hidden": 128}}),
            "a",
            "topics",
            "has another base than .*base.scratch.hidden was 64 and is 128 now",
        ),
        (
            _content(members=[{"name": "a"}, {"name": "new"}]),
            "new",
            "topics",
            "has no member 'new'; its members are a, b",
        ),
    ],
)
def test_what_does_not_fit_the_bundle_is_refused(
    causal_bundle: Bundle,
    tmp_path: Path,
    content: dict[str, Any],
    member: str,
    ensemble: str | None,
    message: str,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        retrain(recipe, member, causal_bundle.path, newer(tmp_path / "new.csv"), ensemble)


def test_a_bundle_that_is_not_finished_is_refused(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(jobs, "train_stage", stop)
    ensemble = {"name": "t", "task": "classification", "label": "label", "members": [{"name": "a"}]}
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    with pytest.raises(RecipeError, match=r"there is no folder .*none"):
        retrain(recipe, "a", tmp_path / "none")
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "bundle")
    with pytest.raises(RecipeError, match="'t' has not been fused; finish it first: choir train"):
        retrain(recipe, "a", tmp_path / "bundle")
