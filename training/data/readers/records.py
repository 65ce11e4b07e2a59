"""What a reader finds: rows, and pieces of a source that cannot be read as rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One row of a source."""

    place: int
    """Number of its line in a text file, else of the row; from 1."""
    cells: Mapping[str, Any]
    named: Collection[str] = ()
    """Columns whose cells the source holds as numbers, and which were read as the names that it has for these."""


@dataclass(frozen=True)
class Unreadable:
    """What stands where a row should be."""

    place: int
    reason: str
    head: str
    """How it begins."""


Found = Iterator[Record | Unreadable]

NO_LABEL = -1
"""What `datasets` puts where a row has none of the labels that have numbers."""

HEAD = 200
"""Characters of an unreadable line that are kept."""


def first_words(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the columns that `datasets` calls a ClassLabel, or a list of such, from its features as JSON."""
    found = {}
    for column, feature in features.items():
        # A list of something; older versions wrote it as a JSON list of one.
        while (isinstance(feature, list) and feature) or _is_list(feature):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = [str(name) for name in feature.get("names") or []]
    return {column: names for column, names in found.items() if names}


def _is_list(feature: Any) -> bool:
    return isinstance(feature, dict) and "_type" in feature and "feature" in feature


def record_of(
    place: int, cells: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> Record | Unreadable:
    """A row, its numbers in the columns of `names` read as the names in their order."""
    try:
        named = {
            column: _named(cells[column], own) for column, own in names.items() if column in cells
        }
    except LookupError as error:
        return Unreadable(place, str(error.args[0]), str(dict(cells))[:HEAD])
    return Record(place, {**cells, **named}, list(named))


def _named(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list | tuple):
        return [_named(part, names) for part in cell]
    if cell is None or cell == NO_LABEL:
        return None
    if not isinstance(cell, int) or not 0 <= cell < len(names):
        raise LookupError(f"{cell!r} is the number of none of the {len(names)} labels")
    return names[cell]
