"""Cells of a source as texts: read once, by one rule, which says what it changed."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from training.data.readers.records import Record
from training.recipe.values import SEPARATOR, spelled

SHOWN = 3
"""How many changes the note of one column names."""


class UnreadableCell(ValueError):
    """A cell that cannot stand in a table of texts; the message says why."""


class Cells:
    """Reads the cells of rows, and counts what it changes.

    A text stays as it is; nothing is an empty text; a list is its parts joined by `|`. Labels get one spelling: without
    space around them, Unicode composed, 1.0 as 1. A number that the source itself has a name for becomes that name."""

    def __init__(self, labels: Collection[str] = (), sets: Collection[str] = ()) -> None:
        """`labels`: the columns that hold one label; `sets`: those that hold several."""
        self._labels, self._sets = frozenset(labels), frozenset(sets)
        self._named: Counter[str] = Counter()
        self._respelled: dict[str, Counter[tuple[str, str]]] = {}

    def row(self, record: Record, columns: Mapping[str, str]) -> dict[str, str]:
        """The texts of a row, from `columns` (name -> name in the source). Raises UnreadableCell."""
        return {name: self._text(name, record, source) for name, source in columns.items()}

    def note(self) -> str:
        """What was changed so far, in words; nothing where nothing was."""
        said = [
            f"{count} cells of {name} read as the names that the source has for its numbers"
            for name, count in sorted(self._named.items())
            if count
        ]
        for name, changes in sorted(self._respelled.items()):
            shown = [f"{old!a} as {new!r} ({n})" for (old, new), n in changes.most_common(SHOWN)]
            more = len(changes) - len(shown)
            shown += [f"{more} more"] if more else []
            said.append(f"{changes.total()} cells of {name} respelled: {', '.join(shown)}")
        return "; ".join(said)

    def _text(self, name: str, record: Record, source: str) -> str:
        cell = record.cells.get(source)
        self._named[name] += source in record.named
        if name in self._sets and isinstance(cell, list | tuple):
            parts = [self._label(name, part) for part in cell]
            if strange := next((part for part in parts if SEPARATOR in part), None):
                raise UnreadableCell(
                    f"the label {strange!r} in column {source!r} has a {SEPARATOR}, which stands between labels; "
                    "give it another name"
                )
            return SEPARATOR.join(parts)
        if name in self._sets:
            return SEPARATOR.join(self._label(name, part) for part in _text(cell).split(SEPARATOR))
        return self._label(name, cell) if name in self._labels else _text(cell)

    def _label(self, name: str, cell: Any) -> str:
        given = _text(cell)
        whole = isinstance(cell, float) and cell.is_integer()
        label = str(int(cell)) if whole else spelled(given)
        if label != given:
            self._respelled.setdefault(name, Counter())[given, label] += 1
        return label


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, list | tuple):
        return SEPARATOR.join(map(_text, cell))
    if isinstance(cell, dict):
        return json.dumps(cell, ensure_ascii=False)
    return str(cell)
