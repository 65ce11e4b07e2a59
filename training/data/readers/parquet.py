"""Parquet by pyarrow, a batch of rows at a time."""

import json
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from training.data.readers.records import Found, class_names, first_words, record_of
from training.recipe.values import RecipeError

BATCH = 1024
FEATURES = b"huggingface"
"""Where `datasets` says in a file of its own what its columns are."""


def read_parquet(stream: BinaryIO, source: str) -> Found:
    """Raises RecipeError when the file is not Parquet, or broken."""
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        names = class_names(_features(file))
        number = 0
        for batch in file.iter_batches(batch_size=BATCH):
            for cells in batch.to_pylist():
                number += 1
                yield record_of(number, cells, names)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"cannot read {source} as parquet: {first_words(error)}") from None


def _features(file: pyarrow.parquet.ParquetFile) -> dict[str, Any]:
    """The columns of a file that `datasets` wrote, by what it says of them; none of another's."""
    said = (file.schema_arrow.metadata or {}).get(FEATURES)
    try:
        features = json.loads(said)["info"]["features"] if said else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}
