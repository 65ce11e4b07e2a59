"""Reads files by their format, on this machine or wherever fsspec reaches."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, cast

from training.data.readers.delimited import read_delimited
from training.data.readers.json_lines import read_json
from training.data.readers.parquet import read_parquet
from training.data.readers.records import Found, first_words
from training.recipe.source import Format, Source
from training.recipe.values import RecipeError, fill_variables

FORMATS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet",
}  # fmt: skip


def read_file(source: Source) -> Found:
    """Yield the rows of a `path` or `url`. Raises RecipeError if it cannot be opened or is not a table."""
    ending = PurePosixPath(str(source.path or source.url).split("?")[0]).suffix.lower()
    kind = source.format or FORMATS.get(ending)
    if kind is None:
        raise RecipeError(
            f"{source.name}: data files must be CSV (.csv, .tsv), JSON Lines (.jsonl) or Parquet (.parquet); "
            "set `format` if the ending does not say it"
        )
    with _opened(source) as stream:
        if kind == "csv":
            delimiter = source.delimiter or ("\t" if ending == ".tsv" else ",")
            yield from read_delimited(stream, source, delimiter)
        elif kind == "jsonl":
            yield from read_json(stream, source)
        else:
            yield from read_parquet(stream, source.name)


@contextmanager
def _opened(source: Source) -> Iterator[io.BufferedReader]:
    if source.path is not None:
        if not source.path.is_file():
            raise RecipeError(f"the data file {source.path} does not exist")
        with source.path.open("rb") as stream:
            yield stream
        return
    with _remote(source) as raw, io.BufferedReader(cast(Any, raw)) as buffered:
        yield buffered


def _remote(source: Source) -> Any:
    import fsspec

    url = fill_variables(str(source.url))
    options = {
        key: fill_variables(value) if isinstance(value, str) else value
        for key, value in source.options.items()
    }
    try:
        return fsspec.open(url, "rb", **options).open()
    except ImportError as error:
        raise RecipeError(f"{source.name}: {error}") from None
    except FileNotFoundError:
        raise RecipeError(f"{source.name} does not exist") from None
    except Exception as error:  # each store has its own errors
        raise RecipeError(f"cannot open {source.name}: {first_words(error)}") from None
