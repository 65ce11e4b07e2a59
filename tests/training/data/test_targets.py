"""Right answers as numbers."""

import numpy as np
import pytest

from training.data.targets import known_labels, targets, unknown_label
from training.recipe import RecipeError


def test_a_row_has_any_number_of_labels() -> None:
    cells = ["b|a", "", " c ", "a||b", "a|a"]
    assert known_labels("multilabel", cells) == ["a", "b", "c"]
    found = targets("multilabel", ["a", "b", "c"], cells, "train")
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, dtype=bool))


def test_a_label_of_classification_may_hold_the_separator() -> None:
    assert known_labels("classification", ["b|a", "a"]) == ["a", "b|a"]
    assert targets("classification", ["a", "b|a"], ["b|a", "a"], "train").tolist() == [1, 0]


def test_values_are_numbers() -> None:
    assert targets("regression", [], ["1.5", " 2 ", "-3e2"], "train").tolist() == [1.5, 2, -300]
    for cell in ("", "high", "nan", "inf"):
        with pytest.raises(RecipeError, match=f"test: row 2 holds '{cell}' where a number"):
            targets("regression", [], ["1", cell], "test")


def test_a_strange_label_is_named() -> None:
    assert unknown_label("multilabel", ["a"], ["a", "a|z|b"]) == "b"
    assert unknown_label("regression", [], ["1"]) is None
    with pytest.raises(RecipeError, match="test: the label 'z' is not one of the 1 labels"):
        targets("multilabel", ["a"], ["a|z"], "test")


def test_labels_are_known_by_their_spelling_wherever_they_come_from() -> None:
    """A bundle from another program may have decomposed labels while its data has composed ones."""
    labels = ["cafe\u0301", "tea"]
    assert unknown_label("classification", labels, ["caf\u00e9", " tea "]) is None
    assert targets("classification", labels, ["tea", "caf\u00e9"], "test").tolist() == [1, 0]
    with pytest.raises(RecipeError, match="differ only in surrounding space"):
        targets("classification", ["card", "card "], ["card"], "test")
