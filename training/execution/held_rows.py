"""Keeps the validation and test rows of a run beside its record. A member can then be trained anew when the files that
they came from are changed or gone."""

import io
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset

from serve.files import write_atomically
from training.data.collect import collect
from training.data.splits import Splits
from training.recipe.source import Source

FOLDER = "held"
"""Folder in the folder of the record."""


def keep_held(folder: Path, splits: Splits) -> None:
    """Write the validation and test rows into the folder of a run's record, unless they are there."""
    for name, rows in (("validation", splits.validation), ("test", splits.test)):
        file = folder / FOLDER / f"{name}.parquet"
        if rows is not None and not file.exists():
            content = io.BytesIO()
            rows.to_parquet(content)
            write_atomically(file, content.getvalue())


def kept(folder: Path, split: str) -> Dataset | None:
    """Return the kept rows of `validation` or `test`, with the columns that preparation adds; None if none were kept.

    Raises RecipeError if the file cannot be read."""
    file = folder / FOLDER / f"{split}.parquet"
    if not file.is_file():
        return None
    columns = pyarrow.parquet.read_schema(file).names
    return collect([Source(path=file)], columns, split).rows
