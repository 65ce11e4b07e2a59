"""Which changes of a recipe a run can go on with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import recipe_content
from training.execution.run import Run
from training.progress import Unwatched
from training.recipe import Recipe, RecipeError
from training.recipe.recipe import parse_recipe

MEMBERS = {"stage topics/a/1": True, "member topics/a": []}
FUSED = MEMBERS | {
    "data": "digest",
    "stage topics/b/1": True,
    "scores topics": {"rows": 9},
    "fusion topics": [],
}


def parsed(folder: Path, change: Any = None) -> Recipe:
    content = recipe_content()
    if change is not None:
        change(content)
    return parse_recipe(content, folder=folder)


def resumed(tmp_path: Path, steps: dict[str, Any], change: Any) -> Run:
    """Begin a run, record these steps, and resume it with a changed recipe."""
    run = Run.start(tmp_path / "bundle", parsed(tmp_path), Unwatched(), resume=False)
    for step, result in steps.items():
        run.finish(step, result)
    return Run.start(tmp_path / "bundle", parsed(tmp_path, change), Unwatched(), resume=True)


def new_candidate(content: dict[str, Any]) -> None:
    content["ensembles"][0]["candidates"].append({"name": "b2", "member": "b"})


def moved_data(content: dict[str, Any]) -> None:
    content["data"]["train"] = "elsewhere/train.csv"


def explicit_default(content: dict[str, Any]) -> None:
    content["ensembles"][0]["members"][0]["epochs"] = 2
    content["ensembles"][0]["on_member_error"] = "fail"


def rank_of_b(content: dict[str, Any]) -> None:
    content["ensembles"][0]["members"][1]["rank"] = 8


def other_fusion(content: dict[str, Any]) -> None:
    content["ensembles"][0]["fusion"] = {"method": "vote"}


def seed(content: dict[str, Any]) -> None:
    content["seed"] = 99


def third_member(content: dict[str, Any]) -> None:
    content["ensembles"][0]["members"].append({"name": "c"})


def template(content: dict[str, Any]) -> None:
    content["ensembles"][0]["template"] = "{text}:"


@pytest.mark.parametrize(
    ("steps", "change"),
    [
        (FUSED, new_candidate),
        (FUSED, moved_data),
        (FUSED, explicit_default),
        (MEMBERS, rank_of_b),
        (MEMBERS, other_fusion),
        (MEMBERS, third_member),
    ],
)
def test_a_run_goes_on_if_nothing_that_is_done_depends_on_the_change(
    tmp_path: Path, steps: dict[str, Any], change: Any
) -> None:
    run = resumed(tmp_path, steps, change)
    assert run.result("member topics/a") == []
    now = Recipe.model_validate_json((run.folder / "recipe.json").read_bytes())
    assert now == parsed(tmp_path, change), "the record has the recipe that the bundle is made by"


@pytest.mark.parametrize(
    ("steps", "change", "message"),
    [
        (FUSED, rank_of_b, "ensembles.topics.members.b.rank was 4 and is 8 now; give another"),
        (FUSED, other_fusion, "ensembles.topics.fusion.method was best and is vote now"),
        (FUSED, third_member, "ensembles.topics.members.c is new"),
        (MEMBERS, seed, "seed was 3 and is 99 now"),
        (MEMBERS, template, "ensembles.topics.template was .* and is {text}: now"),
        (MEMBERS, moved_data, "data.train.0.path was .* and is .* now"),
    ],
)
def test_a_run_names_the_keys_that_something_done_depends_on(
    tmp_path: Path, steps: dict[str, Any], change: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"was begun with another recipe: {message}"):
        resumed(tmp_path, steps, change)


def test_a_stage_that_was_begun_counts(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "bundle", parsed(tmp_path), Unwatched(), resume=False)
    run.finish("base", {})
    (run.folder / "checkpoints" / "topics" / "b").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"members\.b\.rank was 4 and is 8 now"):
        Run.start(tmp_path / "bundle", parsed(tmp_path, rank_of_b), Unwatched(), resume=True)


def test_a_recipe_of_an_earlier_version_without_a_key_resumes(tmp_path: Path) -> None:
    """The key has its default value now."""
    run = Run.start(tmp_path / "bundle", parsed(tmp_path), Unwatched(), resume=False)
    for step, result in FUSED.items():
        run.finish(step, result)
    file = run.folder / "recipe.json"
    content = json.loads(file.read_text())
    del content["precision"], content["ensembles"][0]["golden"]
    del content["ensembles"][0]["members"][0]["stages"][0]["rslora"]
    content["precision"] = "float32"
    file.write_text(json.dumps(content))

    def none_golden(content: dict[str, Any]) -> None:
        del content["ensembles"][0]["golden"]

    Run.start(tmp_path / "bundle", parsed(tmp_path, none_golden), Unwatched(), resume=True)


def test_a_recipe_of_a_newer_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "bundle", parsed(tmp_path), Unwatched(), resume=False)
    run.finish("base", {})
    file = run.folder / "recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantum": 1}))
    with pytest.raises(RecipeError, match="cannot be read by this version of Choir: quantum"):
        Run.start(tmp_path / "bundle", parsed(tmp_path), Unwatched(), resume=True)
