"""Families: rows that stay on one side of every split, because one of them tells what the others are."""

from collections.abc import Hashable, Iterable, Sequence

from datasets import Dataset

from serve.fusion.answers import normalise
from training.data.cleaning.duplicates import SimilarTexts
from training.data.steps import FAMILY, inputs_of


def families(
    texts: Sequence[str],
    similarity: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> list[int]:
    """The family of each row [N], numbered by its first row.

    Of one family are rows with equal texts, but for case and white space; with `similarity`, rows whose texts are at
    least so similar; with `groups` [N], rows of one group; and whoever is of one family with one of these."""
    tree = _Forest(len(texts))
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        tree.join(first.setdefault(normalise(text), row), row)
    if similarity is not None:
        alike = SimilarTexts(similarity)
        for text, row in first.items():
            for other, _ in alike.find(text):
                tree.join(other, row)
            alike.add(row, text)
    for row, family in enumerate(numbered(groups or [])):
        tree.join(family, row)
    return [tree.root(row) for row in range(len(texts))]


def numbered(groups: Iterable[Hashable]) -> list[int]:
    """The families of rows that nothing but their group holds together."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(group, row) for row, group in enumerate(groups)]


def families_of(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """The family of each row of a table, as its preparation found it; where none has, by the texts in `columns`."""
    if FAMILY in rows.column_names:
        return list(rows[FAMILY])
    return families(inputs_of(rows, columns))


class _Forest:
    """Rows joined into trees; the root of a tree is its first row."""

    def __init__(self, rows: int) -> None:
        self._above = list(range(rows))

    def root(self, row: int) -> int:
        while self._above[row] != row:
            # Each step makes the way shorter for the next one.
            self._above[row] = self._above[self._above[row]]
            row = self._above[row]
        return row

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low
