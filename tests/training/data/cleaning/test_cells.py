import pytest
from datasets import Dataset

from training.data.cleaning.cells import empty_cells, other_languages, wrong_length
from training.recipe.values import RecipeError

ENGLISH = [
    "where is my card", "how do i top up", "show me how to top up", "why did i only get 20.00",
    "how do i get a pin for my card", "card", "123", "",
]  # fmt: skip
OTHERS = ["Wo ist meine Karte geblieben?", "où est donc ma carte bancaire ?", "где моя карта"]


def test_empty_cells_are_named_by_their_column() -> None:
    rows = Dataset.from_dict({"text": ["a", " ", "c"], "label": ["x", "", "\t"]})
    found = empty_cells(rows, ["text", "label"])
    assert found == {1: "an empty cell in column 'text'", 2: "an empty cell in column 'label'"}


def test_lengths_are_counted_without_the_space_around() -> None:
    assert sorted(wrong_length(["  a  ", "abc", "abcdef"], 2, 5)) == [0, 2]


def test_other_languages_leave_and_short_english_stays() -> None:
    found = other_languages([*ENGLISH, *OTHERS], ["en"], 0.4)
    assert [reason.split("'")[1] for reason in found.values()] == ["de", "fr", "ru"]
    assert sorted(found) == [8, 9, 10]
    assert sorted(other_languages(OTHERS, ["en", "de", "fr"], 0.4)) == [2]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"languages: 'xx' is not one of .* de, .*en, "):
        other_languages(["a"], ["xx"], 0.4)
