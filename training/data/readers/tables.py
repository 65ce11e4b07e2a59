"""Reads data sets on the hub, and queries of databases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data.readers.records import Found, Record, class_names, first_words, record_of
from training.recipe.source import Source
from training.recipe.values import RecipeError, fill_variables


def read_hub(source: Source) -> Found:
    """Yield the rows of a data set on the hub or in its local cache. Raises RecipeError if neither has it."""
    from datasets import Image, load_dataset

    try:
        rows = load_dataset(source.hub, source.config, split=source.split, revision=source.revision)
    except (
        Exception
    ) as error:  # network, authorisation, cache and parser errors share no base class
        raise RecipeError(
            f"cannot get the data set {source.hub}@{source.revision} from the hub or its local cache "
            f"({first_words(error)}); without a network give a file"
        ) from None
    names = class_names(rows.features.to_dict())
    images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    for name in images:  # else they would be decoded here, and stored anew as larger files
        rows = rows.cast_column(name, Image(decode=False))
    for number, cells in enumerate(rows, start=1):
        files = {name: _file(cells[name]) for name in images}
        yield record_of(number, {**cells, **files}, names)


def _file(image: Mapping[str, Any] | None) -> Any:
    """Return the bytes of an image as `datasets` stores it: beside the rows, or in a file of the data set. What cannot
    be opened stays, and is no image."""
    if image is None or image["bytes"] is not None:
        return image
    try:
        return Path(image["path"]).read_bytes()
    except (OSError, TypeError):
        return image


def read_query(source: Source) -> Found:
    """Yield the rows of a query in their order. Raises RecipeError if the query cannot be run."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(fill_variables(str(source.database)))
        with engine.connect().execution_options(stream_results=True) as connection:
            for number, cells in enumerate(connection.execute(text(str(source.sql))).mappings(), 1):
                yield Record(number, dict(cells))
    except ImportError as error:
        raise RecipeError(f"data.sql: the database needs a driver: {error}") from None
    except SQLAlchemyError as error:
        reason = first_words(getattr(error, "orig", None) or error)
        raise RecipeError(f"data.sql: the query cannot be run: {reason}") from None
