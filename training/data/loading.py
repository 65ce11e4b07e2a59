"""Loads files whose rows must all be usable. The error names the place of the first row that is not."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from training.data.cleaning.cells import empty_cells
from training.data.collect import collect
from training.data.readers.files import read_file
from training.data.readers.records import Unreadable
from training.data.steps import ORIGIN, Left, visible
from training.recipe.source import Source
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Loaded:
    """Rows, and a note on what was changed when their cells were read."""

    rows: Dataset
    note: str


def load_rows(
    files: Sequence[Path],
    columns: Sequence[str],
    *,
    labels: Collection[str] = (),
    sets: Collection[str] = (),
    images: Collection[str] = (),
) -> Loaded:
    """Read the rows of all files as one table with exactly `columns`. No cell is empty, except in `sets`.

    The columns in `labels` hold one label, those in `sets` several or none, those in `images` an image. Raises
    RecipeError if a file is absent or empty, or if a row cannot be read or lacks a cell.
    """
    sources = [Source(path=file) for file in files]
    outcome = collect(sources, columns, labels=labels, sets=sets, images=images)
    refuse_unreadable(outcome.left)
    refuse_empty(outcome.rows, [name for name in columns if name not in sets])
    return Loaded(visible(outcome.rows), outcome.note)


def has_column(file: Path, column: str) -> bool:
    """Whether the first row of a file has a column. An unreadable row has none."""
    first = next(iter(read_file(Source(path=file))), None)
    return first is not None and not isinstance(first, Unreadable) and column in first.cells


def refuse_unreadable(left: Sequence[Left], remedy: str = "") -> None:
    """Raise RecipeError if rows could not be read; the message names the first one and ends in `remedy`."""
    if left:
        raise RecipeError(
            f"{left[0].origin} cannot be read: {left[0].reason}{more_rows(left)}{remedy}"
        )


def refuse_empty(rows: Dataset, columns: Sequence[str], remedy: str = "") -> None:
    """Raise RecipeError if a row has an empty cell in `columns`; the message names the first row and ends in
    `remedy`."""
    empty = empty_cells(rows, columns)
    if empty:
        first = min(empty)
        raise RecipeError(
            f"{rows[first][ORIGIN]} has {empty[first]}{more_rows(list(empty))}{remedy}"
        )


def more_rows(found: Sequence[object]) -> str:
    """Return how many rows there are beyond the first, for the end of a message about it; empty if there are none."""
    rest = len(found) - 1
    return f" (and {rest} more row{'s' if rest > 1 else ''})" if rest else ""
