"""The labels that a recipe names."""

from pathlib import Path

import pytest

from tests.training.conftest import recipe_content
from tests.training.recipe.conftest import changed
from training.recipe import (
    RecipeError,
    parse_recipe,
)


def test_labels_of_a_recipe_have_the_spelling_of_labels_in_cells(tmp_path: Path) -> None:
    content = changed("ensembles.0.labels", [" card", "cafe\u0301", "top_up"])
    content["ensembles"][0]["verbalizers"] = {"card ": "a card"}
    ensemble = parse_recipe(content, folder=tmp_path).ensembles[0]
    assert ensemble.labels == ["card", "caf\u00e9", "top_up"]
    assert ensemble.verbalizers == {"card": "a card"}


def test_a_label_that_cells_could_not_hold_is_refused(tmp_path: Path) -> None:
    content = recipe_content(base={"kind": "encoder", "path": "nowhere"})
    ensemble = {"name": "e", "task": "multilabel", "label": "label", "members": [{"name": "a"}]}
    content["ensembles"] = [ensemble | {"labels": ["C|C++", "code"]}]
    with pytest.raises(RecipeError, match=r"the label 'C\|C\+\+' has a \|"):
        parse_recipe(content, folder=tmp_path)
    content["ensembles"] = [ensemble | {"labels": ["code", " code"]}]
    with pytest.raises(RecipeError, match=r"the label 'code' is listed twice"):
        parse_recipe(content, folder=tmp_path)
