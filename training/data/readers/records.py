"""What readers yield: rows, and pieces of a source that cannot be read as rows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One row of a source."""

    place: int
    """The number of its line in a text file, else the number of the row; from 1."""
    cells: Mapping[str, Any]
    named: Collection[str] = ()
    """The columns whose numbers were replaced by the source's names for them."""


@dataclass(frozen=True)
class Unreadable:
    """A piece of a source that cannot be read as a row."""

    place: int
    reason: str
    head: str
    """The beginning of the piece."""


Found = Iterator[Record | Unreadable]

NO_LABEL = -1
"""The number that `datasets` gives to a row without a label."""

HEAD = 200
"""How many characters of an unreadable line are kept."""


def first_words(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name if it has no message."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the labels' names for each column that is a ClassLabel of `datasets`, or a list of these. `features` is
    the features' JSON."""
    found = {}
    for column, feature in features.items():
        # A list's feature is wrapped in an object; older versions wrapped it in a JSON list.
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
    """Make a row, in which the numbers in the columns of `names` are replaced by names."""
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
        raise LookupError(f"{cell!r} is not the number of one of the {len(names)} labels")
    return names[cell]
