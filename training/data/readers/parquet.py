"""Reads Parquet by pyarrow, a batch of rows at a time."""

import json
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from training.data.readers.records import Found, class_names, first_words, record_of
from training.recipe.values import RecipeError

BATCH = 1024
FEATURES = b"huggingface"
"""The key in a file's metadata under which `datasets` describes the columns."""


def read_parquet(stream: BinaryIO, source: str) -> Found:
    """Yield the rows of a Parquet file. Raises RecipeError if the file is not Parquet or is broken."""
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
    """Return the columns' descriptions by `datasets`; empty if another program wrote the file."""
    said = (file.schema_arrow.metadata or {}).get(FEATURES)
    try:
        features = json.loads(said)["info"]["features"] if said else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}
