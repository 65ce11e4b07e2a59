"""Families: rows that stay together in every split, because a model that saw one of them knows the others."""

from collections.abc import Hashable, Iterable, Sequence

from datasets import Dataset

from training.data.cleaning.duplicates import comparable, similar_inputs
from training.data.steps import FAMILY, inputs_of


def families(
    texts: Sequence[str],
    similarity: float | None = None,
    groups: Sequence[Hashable] | None = None,
    images: bool = False,
) -> list[int]:
    """Return the family of each row [N]. A family's number is the index of its first row.

    Two rows are in one family if their texts are equal, apart from case and white space; with `similarity`, if their
    texts are at least this similar; with `groups` [N], if they have the same group; or if a chain of such rows connects
    them. With `images`, the inputs are images."""
    tree = _Forest(len(texts))
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        tree.join(first.setdefault(comparable(text), row), row)
    if similarity is not None:
        alike = similar_inputs(similarity, images)
        for text, row in first.items():
            for other, _ in alike.find(text):
                tree.join(other, row)
            alike.add(row, text)
    for row, family in enumerate(numbered(groups or [])):
        tree.join(family, row)
    return [tree.root(row) for row in range(len(texts))]


def numbered(groups: Iterable[Hashable]) -> list[int]:
    """Return the family of each row if only equal groups are families."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(group, row) for row, group in enumerate(groups)]


def families_of(rows: Dataset, columns: Sequence[str]) -> list[int]:
    """Return the family of each row: from the table's family column or, without one, by the texts in `columns`."""
    if FAMILY in rows.column_names:
        return list(rows[FAMILY])
    return families(inputs_of(rows, columns))


class _Forest:
    """Joins rows into trees (union-find). The root of a tree is its first row."""

    def __init__(self, rows: int) -> None:
        self._above = list(range(rows))

    def root(self, row: int) -> int:
        while self._above[row] != row:
            # Each step shortens later paths to the root.
            self._above[row] = self._above[self._above[row]]
            row = self._above[row]
        return row

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._above[high] = low
