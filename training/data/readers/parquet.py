"""Parquet by pyarrow, a batch of rows at a time."""

from typing import BinaryIO

import pyarrow
import pyarrow.parquet

from training.data.readers.records import Found, Record
from training.recipe.values import RecipeError

BATCH = 1024


def read_parquet(stream: BinaryIO, source: str) -> Found:
    """Raises RecipeError when the file is not Parquet, or broken."""
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH):
            for cells in batch.to_pylist():
                number += 1
                yield Record(number, cells)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"cannot read {source} as parquet: {reason}") from None
