"""Rows of one or several sources as one table of texts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from training.data.readers.files import read_file
from training.data.readers.records import Found, Unreadable
from training.data.readers.tables import read_hub, read_query
from training.data.steps import HIDDEN, ORIGIN, WEIGHT, Left, Outcome, shortened
from training.recipe.source import Source
from training.recipe.values import RecipeError

SEPARATOR = "|"
"""Between the parts of a cell that a source holds as a list, such as the labels of a multilabel row."""


def collect(sources: Sequence[Source], columns: Sequence[str], split: str = "rows") -> Outcome:
    """All rows of all sources, in order, with `columns` and preparation's own.

    What cannot be read as a row is among those that left. A missing cell is an empty text. Raises RecipeError when a
    source is absent or has no rows, or no row of it has one of the columns.
    """
    cells: dict[str, list[str]] = {name: [] for name in [*columns, *HIDDEN]}
    left: list[Left] = []
    for source in sources:
        _read_source(source, columns, cells, left, split)
    return Outcome(Dataset.from_dict(cells), left)


def from_rows(rows: Sequence[Mapping[str, str]], columns: Sequence[str], name: str) -> Dataset:
    """The same from rows in memory."""
    cells = {column: [row[column] for row in rows] for column in columns}
    cells[ORIGIN] = [f"{name}:{number}" for number in range(1, len(rows) + 1)]
    cells[WEIGHT] = ["1"] * len(rows)
    return Dataset.from_dict(cells)


def _read_source(
    source: Source,
    columns: Sequence[str],
    cells: dict[str, list[str]],
    left: list[Left],
    split: str,
) -> None:
    known: dict[str, None] = {}
    found = 0
    for piece in _rows_of(source):
        found += 1
        origin = f"{source.name}:{piece.place}"
        if isinstance(piece, Unreadable):
            left.append(Left(split, "unreadable", piece.reason, origin, {"": piece.head}))
            continue
        known.update(dict.fromkeys(piece.cells))
        row = {name: _text(piece.cells.get(source.columns.get(name, name))) for name in columns}
        if not _is_unicode(row.values()):
            whole = {name: cell.encode(errors="replace").decode() for name, cell in row.items()}
            left.append(Left(split, "unreadable", "no Unicode text", origin, shortened(whole)))
            continue
        for name, cell in row.items():
            cells[name].append(cell)
        cells[ORIGIN].append(origin)
        cells[WEIGHT].append(str(source.weight))
    if not found:
        raise RecipeError(f"{source.name} has no rows")
    for name in columns:
        wanted = source.columns.get(name, name)
        if known and wanted not in known:
            raise RecipeError(
                f"{source.name} has no column {wanted!r}; its columns are {', '.join(known)}"
            )


def _rows_of(source: Source) -> Found:
    if source.hub is not None:
        return read_hub(source)
    if source.sql is not None:
        return read_query(source)
    return read_file(source)


def _is_unicode(cells: Iterable[str]) -> bool:
    """Whether no cell holds half a character, which JSON can write (`\\ud83d`) and no file can hold."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, list | tuple):
        return SEPARATOR.join(map(_text, cell))
    if isinstance(cell, dict):
        return json.dumps(cell, ensure_ascii=False)
    return str(cell)
