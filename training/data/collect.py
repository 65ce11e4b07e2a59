"""Collects the rows of one or several sources into one table of texts."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from datasets import Dataset

from training.data.cells import Cells, UnreadableCell
from training.data.readers.files import read_file
from training.data.readers.records import Found, Unreadable
from training.data.readers.tables import read_hub, read_query
from training.data.steps import HIDDEN, ORIGIN, WEIGHT, Left, Outcome, shortened
from training.recipe.source import Source
from training.recipe.values import RecipeError


def collect(
    sources: Sequence[Source],
    columns: Sequence[str],
    split: str = "rows",
    *,
    labels: Collection[str] = (),
    sets: Collection[str] = (),
    images: Collection[str] = (),
) -> Outcome:
    """Read all rows of all sources, in order, with `columns` and the hidden columns.

    The columns in `labels` hold one label, those in `sets` several; these cells get one spelling, and the outcome's
    note describes the changes. Those in `images` hold an image, whose path is relative to the file; they become data
    URLs. A missing cell becomes an empty text. Rows that cannot be read are in the outcome's `left`. Raises RecipeError
    if a source is absent, has no rows, or lacks one of the columns.
    """
    table: dict[str, list[str]] = {name: [] for name in [*columns, *HIDDEN]}
    left: list[Left] = []
    cells = Cells(labels, sets, images)
    for source in sources:
        _read_source(source, columns, cells, table, left, split)
    return Outcome(Dataset.from_dict(table), left, note=cells.note())


def from_rows(rows: Sequence[Mapping[str, str]], columns: Sequence[str], name: str) -> Dataset:
    """Make the same kind of table from rows in memory. Raises RecipeError if they lack one of the columns."""
    for column in columns:
        if column not in rows[0]:
            raise RecipeError(
                f"the {name} rows have no column {column!r}; their columns are {', '.join(rows[0])}"
            )
    cells = {column: [row[column] for row in rows] for column in columns}
    cells[ORIGIN] = [f"{name}:{number}" for number in range(1, len(rows) + 1)]
    cells[WEIGHT] = ["1"] * len(rows)
    return Dataset.from_dict(cells)


def _read_source(
    source: Source,
    columns: Sequence[str],
    cells: Cells,
    table: dict[str, list[str]],
    left: list[Left],
    split: str,
) -> None:
    known: dict[str, None] = {}
    found = 0
    wanted = {name: source.columns.get(name, name) for name in columns}
    folder = None if source.path is None else source.path.parent
    for piece in _rows_of(source):
        found += 1
        origin = f"{source.name}:{piece.place}"
        if isinstance(piece, Unreadable):
            left.append(Left(split, "unreadable", piece.reason, origin, {"": piece.head}))
            continue
        known.update(dict.fromkeys(piece.cells))
        try:
            row = cells.row(piece, wanted, folder)
            reason = _no_text(row.values())
        except UnreadableCell as error:
            row = {name: str(piece.cells.get(column)) for name, column in wanted.items()}
            reason = str(error)
        if reason:
            whole = {name: cell.encode(errors="replace").decode() for name, cell in row.items()}
            left.append(Left(split, "unreadable", reason, origin, shortened(whole)))
            continue
        for name, cell in row.items():
            table[name].append(cell)
        table[ORIGIN].append(origin)
        table[WEIGHT].append(str(source.weight))
    if not found:
        raise RecipeError(f"{source.name} has no rows")
    for column in wanted.values():
        if known and column not in known:
            raise RecipeError(
                f"{source.name} has no column {column!r}; its columns are {', '.join(known)}"
            )


def _rows_of(source: Source) -> Found:
    if source.hub is not None:
        return read_hub(source)
    if source.sql is not None:
        return read_query(source)
    return read_file(source)


def _no_text(cells: Iterable[str]) -> str | None:
    """Return why cells are not valid texts, or None. Half of a surrogate pair (`\\ud83d`), which JSON can contain,
    cannot be encoded; a NUL shows that a file is broken."""
    whole = "".join(cells)
    try:
        whole.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return "it has a NUL character" if "\0" in whole else None
