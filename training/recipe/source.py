"""The recipe's part on a source of rows: a file, an object in a store, a data set on the hub, or a query."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from training.recipe.values import Column, RecipePath, Strict

Format = Literal["csv", "jsonl", "parquet"]


class Source(Strict):
    """One source of rows. Give exactly one of `path`, `url`, `hub` and `sql`."""

    path: RecipePath | None = None
    """A file: `.csv`, `.tsv`, `.jsonl`, `.json` (an array) or `.parquet`."""
    url: str | None = None
    """A URL that fsspec opens: `s3://...`, `gs://...`, `https://...`. Variables are replaced when it is opened."""
    options: dict[str, Any] = Field(default_factory=dict)
    """fsspec's storage options for `url`."""
    hub: str | None = None
    """A data set on the Hugging Face hub, at one `revision`."""
    config: str | None = None
    """The data set's configuration on the hub."""
    split: str = "train"
    """The data set's split on the hub."""
    revision: str | None = None
    """The revision of `hub`, required with it."""
    sql: str | None = None
    """A query of `database`; its result is the rows."""
    database: str | None = None
    """The SQLAlchemy URL of the database for `sql`. Variables are replaced when it is opened."""
    format: Format | None = None
    """Format of `path` or `url`; default: by the file's ending."""
    encoding: str = "utf-8"
    """Encoding of text files. It must encode ASCII characters as ASCII does."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """CSV: the character between cells; default: a comma, or a tab for `.tsv`."""
    quotes: bool = True
    """CSV: whether double quotes enclose cells."""
    names: list[Column] | None = None
    """CSV without a header: the names of its columns."""
    extra_cells: Literal["refuse", "drop"] = "refuse"
    """CSV: what happens to rows with more cells than columns. `drop` ignores the cells after the last column."""
    columns: dict[Column, Column] = Field(default_factory=dict)
    """Maps a column of the recipe to the source's column, if their names differ."""
    weight: float = Field(1.0, gt=0, le=100)
    """How often each training row is used: 2 means twice, 0.5 a random half, drawn after cleaning and splitting."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in ("path", "url", "hub", "sql") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, url, hub and sql (given: {', '.join(given) or 'none'})"
            )
        if (self.hub is None) != (self.revision is None):
            raise ValueError(
                "hub and revision belong together: a data set without a revision is not reproducible"
            )
        if (self.sql is None) != (self.database is None):
            raise ValueError("sql and database belong together")
        return self

    @property
    def name(self) -> str:
        """The source's name in messages and in the quarantine file, without credentials."""
        if self.path is not None:
            return self.path.name
        if self.hub is not None:
            return f"{self.hub}/{self.split}"
        if self.sql is not None:
            return "the query"
        return re.sub(r"//[^/@]*@", "//", str(self.url))


def _as_sources(value: Any) -> Any:
    entries = value if isinstance(value, list) else [value]
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]
"""Sources, written as a file's name, a source, or a list of either."""
