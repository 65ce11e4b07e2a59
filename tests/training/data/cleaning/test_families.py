"""The families of rows."""

import pytest
from datasets import Dataset

from training.data.cleaning.families import families, families_of
from training.data.steps import FAMILY

TEXTS = ["Hello there", "bye", "hello  THERE ", "good evening", "bye now"]


def test_equal_texts_are_one_family_whatever_their_case_and_space() -> None:
    assert families(TEXTS) == [0, 1, 0, 3, 4]


def test_groups_that_share_a_text_are_one_family() -> None:
    assert families(TEXTS, groups=["a", "b", "c", "c", "b"]) == [0, 1, 0, 0, 1]


def test_similar_texts_are_one_family_from_one_to_the_next() -> None:
    pytest.importorskip("datasketch")
    chain = [
        f"the parcel that I ordered {day} has not arrived at my house"
        for day in ("on Monday", "on Sunday", "yesterday")
    ]
    texts = [*chain, "something else altogether"]
    assert families(texts) == [0, 1, 2, 3]
    assert families(texts, similarity=0.6) == [0, 0, 0, 3]


def test_a_table_without_families_has_those_of_its_texts() -> None:
    rows = Dataset.from_dict({"one": ["a", "a", "A"], "two": ["x", "y", "x"]})
    assert families_of(rows, ["one"]) == [0, 0, 0]
    assert families_of(rows, ["one", "two"]) == [0, 1, 0]
    assert families_of(rows.add_column(FAMILY, [7, 8, 9]), ["one"]) == [7, 8, 9]
