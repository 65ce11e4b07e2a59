"""Counts with their nouns."""

import pytest

from serve.terminal.words import counted


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1200, "1,200 rows")]
)
def test_one_is_singular_and_all_others_are_plural(count: int, said: str) -> None:
    assert counted(count, "row") == said


def test_a_plural_of_its_own_is_taken() -> None:
    assert counted(1, "match", "matches") == "1 match"
    assert counted(3, "match", "matches") == "3 matches"
