"""Labelled rows from CSV, JSON Lines and Parquet files, through `datasets` and without a network."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, load_dataset

from training.recipe import RecipeError

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(files: Sequence[Path], columns: Sequence[str], cache: Path) -> Dataset:
    """Rows of all files as one table with exactly `columns`, each cell a non-empty string.

    Raises RecipeError when a file is absent or of an unknown kind, or a column or cell is missing.
    """
    for file in files:
        if not file.is_file():
            raise RecipeError(f"the data file {file} does not exist")
    formats = {FORMATS.get(file.suffix.lower()) for file in files}
    if None in formats or len(formats) > 1:
        names = ", ".join(file.name for file in files)
        raise RecipeError(
            f"data files must all be CSV, all JSON Lines (.jsonl) or all Parquet, but are: {names}"
        )
    kind = str(formats.pop())
    # A message that says "null" or "NA" is a message, not a missing cell.
    options = {"keep_default_na": False} if kind == "csv" else {}
    try:
        table = load_dataset(
            kind,
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(cache),
            **options,
        )
    except Exception as error:  # the loaders raise whatever their parsers raise
        if "corresponds to no data" in str(error):
            raise RecipeError(f"{files[0]} has no rows") from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RecipeError(f"cannot read {files[0]} as {kind}: {reason}") from None
    return _checked(table, columns, files[0])


def from_rows(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Dataset:
    """The same from rows in memory."""
    return _checked(Dataset.from_list(list(rows)), columns, Path("the rows"))


def _checked(table: Dataset, columns: Sequence[str], source: Path) -> Dataset:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise RecipeError(
            f"{source} has no column {missing[0]!r}; its columns are {', '.join(table.column_names)}"
        )
    if not len(table):
        raise RecipeError(f"{source} has no rows")
    checked: dict[str, list[str]] = {}
    for column in columns:
        cells = table[column]
        for number, cell in enumerate(cells):
            if cell is None or not str(cell).strip():
                raise RecipeError(
                    f"{source}: row {number + 1} has an empty cell in column {column!r}"
                )
        checked[column] = [str(cell) for cell in cells]
    return Dataset.from_dict(checked)
