"""Reads the cells of a source as texts, by one rule for all sources, and notes what it changes."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from serve.images.limits import ImageError
from serve.terminal.words import counted
from training.data.images import image_url
from training.data.readers.records import Record
from training.recipe.values import SEPARATOR, spelled

SHOWN = 3
"""How many changes the note names for each column."""


class UnreadableCell(ValueError):
    """A cell that cannot be read as a text; the message says why."""


class Cells:
    """Reads the cells of rows as texts, and counts its changes.

    A text stays as it is, a missing cell becomes an empty text, and a list becomes its parts joined by `|`. Labels get
    one spelling: no surrounding space, composed Unicode, and 1 for 1.0. If the source has a name for a number, the name
    replaces the number. An image becomes its data URL."""

    def __init__(
        self,
        labels: Collection[str] = (),
        sets: Collection[str] = (),
        images: Collection[str] = (),
    ) -> None:
        """`labels` are the columns whose cells hold one label, `sets` those whose cells hold several, and `images`
        those whose cells hold an image."""
        self._labels, self._sets = frozenset(labels), frozenset(sets)
        self._images = frozenset(images)
        self._named: Counter[str] = Counter()
        self._respelled: dict[str, Counter[tuple[str, str]]] = {}

    def row(
        self, record: Record, columns: Mapping[str, str], folder: Path | None = None
    ) -> dict[str, str]:
        """Return the texts of a row by column. `columns` maps names to the source's names; `folder` is where paths of
        images start. Raises UnreadableCell."""
        return {
            name: _image(record.cells.get(source), folder)
            if name in self._images
            else self._text(name, record, source)
            for name, source in columns.items()
        }

    def note(self) -> str:
        """Describe all changes so far; empty if there were none."""
        said = [
            f"{counted(count, 'cell')} of {name} read as the source's names for its numbers"
            for name, count in sorted(self._named.items())
            if count
        ]
        for name, changes in sorted(self._respelled.items()):
            shown = [f"{old!a} as {new!r} ({n})" for (old, new), n in changes.most_common(SHOWN)]
            more = len(changes) - len(shown)
            shown += [f"{more} more"] if more else []
            said.append(
                f"{counted(changes.total(), 'cell')} of {name} respelled: {', '.join(shown)}"
            )
        return "; ".join(said)

    def _text(self, name: str, record: Record, source: str) -> str:
        cell = record.cells.get(source)
        self._named[name] += source in record.named
        if name in self._sets and isinstance(cell, list | tuple):
            parts = [self._label(name, part) for part in cell]
            if strange := next((part for part in parts if SEPARATOR in part), None):
                raise UnreadableCell(
                    f"the label {strange!r} in column {source!r} has a {SEPARATOR}, which separates labels; "
                    "rename the label"
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


def _image(cell: Any, folder: Path | None) -> str:
    try:
        return image_url(cell, folder)
    except ImageError as error:
        raise UnreadableCell(str(error).rstrip(".")) from None


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, list | tuple):
        return SEPARATOR.join(map(_text, cell))
    if isinstance(cell, dict):
        return json.dumps(cell, ensure_ascii=False)
    return str(cell)
