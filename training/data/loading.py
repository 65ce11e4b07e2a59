"""Rows that must all be sound: whatever cannot be used is an error, with the place of the first one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from training.data.cleaning.cells import empty_cells
from training.data.collect import collect
from training.data.steps import ORIGIN, Left, visible
from training.recipe.source import Source
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Loaded:
    """Rows, and what was changed as their cells were read, in words."""

    rows: Dataset
    note: str


def load_rows(
    files: Sequence[Path],
    columns: Sequence[str],
    *,
    labels: Collection[str] = (),
    sets: Collection[str] = (),
) -> Loaded:
    """Rows of all files as one table with exactly `columns`, each cell a text that is not empty.

    `labels` and `sets`: the columns that hold one label, or several; a set may be empty. Raises RecipeError for a file
    that is absent or empty, and for a row that cannot be read or has a cell missing.
    """
    outcome = collect([Source(path=file) for file in files], columns, labels=labels, sets=sets)
    refuse_unreadable(outcome.left)
    refuse_empty(outcome.rows, [name for name in columns if name not in sets])
    return Loaded(visible(outcome.rows), outcome.note)


def refuse_unreadable(left: Sequence[Left], remedy: str = "") -> None:
    """Raises RecipeError for the first piece of a source that is no row."""
    if left:
        raise RecipeError(f"{left[0].origin} cannot be read: {left[0].reason}{_more(left)}{remedy}")


def refuse_empty(rows: Dataset, columns: Sequence[str], remedy: str = "") -> None:
    """Raises RecipeError for the first row without one of the columns, or for a table without rows."""
    empty = empty_cells(rows, columns)
    if empty:
        first = min(empty)
        raise RecipeError(f"{rows[first][ORIGIN]} has {empty[first]}{_more(list(empty))}{remedy}")


def _more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
