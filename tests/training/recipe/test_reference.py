"""The page of all keys of a recipe."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from training.recipe import reference

ROOT = Path(__file__).parents[3]


def test_the_page_says_what_the_models_say() -> None:
    written = (ROOT / reference.PAGE).read_text(encoding="utf-8")

    assert written == reference.page(), "run `python -m training.recipe.reference`"


@pytest.mark.parametrize("model", reference.SECTIONS, ids=lambda model: model.__name__)
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    assert set(reference.described(model)) == set(model.model_fields)
