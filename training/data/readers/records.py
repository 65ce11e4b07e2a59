"""What a reader finds: rows, and pieces of a source that cannot be read as rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """One row of a source."""

    place: int
    """Number of its line in a text file, else of the row; from 1."""
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """What stands where a row should be."""

    place: int
    reason: str
    head: str
    """How it begins."""


Found = Iterator[Record | Unreadable]

HEAD = 200
"""Characters of an unreadable line that are kept."""
