"""The outcome of a step of preparation, and the cache of outcomes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset
from pydantic import BaseModel

from serve.files import write_atomically
from training.data.suspect import Suspect

ORIGIN = "__origin__"
"""Column with each row's `file:line`, for messages and the quarantine file."""
WEIGHT = "__weight__"
"""Column with the weight of each row's source."""
HIDDEN = (ORIGIN, WEIGHT)
"""Columns that preparation adds when rows are read. Members never see them."""
FAMILY = "__family__"
"""Column with the number of each training row's family. Rows of one family stay together in every split."""

VERSION = 2
"""Increase this when a step's result for the same content changes, so that older caches are not used."""
KEPT_CHARACTERS = 500
"""The most characters of a cell in the quarantine file."""


@dataclass(frozen=True)
class Left:
    """A row that left, and why."""

    split: str
    step: str
    reason: str
    origin: str
    row: Mapping[str, str]


@dataclass(frozen=True)
class Count:
    """What one step did to one split."""

    split: str
    step: str
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class Overlap:
    """The result of comparing two splits."""

    split: str
    other: str
    """The split that judges `split`."""
    rows: int
    """The number of rows of `split` whose text is in `other`."""
    left: bool
    """Whether these rows left."""
    similarity: float | None
    """The similarity from which texts count as equal; None if only equal texts do."""


@dataclass(frozen=True)
class Outcome:
    """The result of a step: the remaining rows, the rows that left, the rows for review, and a note."""

    rows: Dataset
    left: Sequence[Left] = ()
    suspects: Sequence[Suspect] = ()
    note: str = ""
    kept: Sequence[int] | None = None
    """The indices of `rows` in the step's input; None if the step made new rows."""


def leave(rows: Dataset, reasons: Mapping[int, str], split: str, step: str) -> Outcome:
    """Remove the rows at the indices in `reasons`, which map to the reason why each leaves."""
    left = [
        Left(split, step, reasons[index], rows[index][ORIGIN], shortened(rows[index]))
        for index in sorted(reasons)
    ]
    kept = [index for index in range(len(rows)) if index not in reasons]
    return Outcome(rows.select(kept) if left else rows, left, kept=kept)


def visible(rows: Dataset, columns: Sequence[str] | None = None) -> Dataset:
    """Return the rows with only `columns`; by default, with all columns that preparation did not add."""
    if columns is not None:
        return rows.select_columns(list(columns))
    return rows.remove_columns([name for name in (*HIDDEN, FAMILY) if name in rows.column_names])


def inputs_of(rows: Dataset, columns: Sequence[str]) -> list[str]:
    """Return the input of each row: its texts in `columns`, joined by line feeds."""
    return ["\n".join(texts) for texts in zip(*(rows[column] for column in columns), strict=True)]


def shortened(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row for the quarantine file: without hidden columns, and with very long cells cut."""
    own = (*HIDDEN, FAMILY)
    return {name: str(cell)[:KEPT_CHARACTERS] for name, cell in row.items() if name not in own}


def digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 of texts, each of which is preceded by its length."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", errors="surrogatepass")
        total.update(b"%d:" % len(content))
        total.update(content)
    return total.hexdigest()


def content_digest(rows: Dataset) -> str:
    """Return the SHA-256 of a table's columns and cells."""
    cells = (cell for name in rows.column_names for cell in (name, *map(str, rows[name])))
    return digest([str(len(rows)), *rows.column_names, digest(cells)])


class StepCache:
    """Stores outcomes on disk by step, options and content. If a step only removes rows, it stores the indices of the
    rest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def outcome(
        self,
        step: str,
        options: BaseModel | Mapping[str, Any],
        inputs: Sequence[Dataset],
        compute: Callable[[], Outcome],
    ) -> Outcome:
        """Return the stored outcome of a step with these options and inputs, or compute and store it."""
        asked = options.model_dump_json() if isinstance(options, BaseModel) else json.dumps(options)
        key = digest([str(VERSION), step, asked, *map(content_digest, inputs)])[:16]
        folder = self._folder / f"{step}-{key}"
        if (folder / "outcome.json").is_file():
            return _read(folder, inputs[0])
        outcome = compute()
        _write(folder, outcome)
        return outcome


def _write(folder: Path, outcome: Outcome) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if outcome.kept is None:
        pyarrow.parquet.write_table(outcome.rows.with_format("arrow")[:], folder / "rows.parquet")
    content = {
        "kept": None if outcome.kept is None else list(outcome.kept),
        "left": [asdict(row) for row in outcome.left],
        "suspects": [asdict(row) for row in outcome.suspects],
        "note": outcome.note,
    }
    # Written last, so that a folder with this file is complete.
    write_atomically(folder / "outcome.json", json.dumps(content))


def _read(folder: Path, rows: Dataset) -> Outcome:
    content = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    kept = content["kept"]
    if kept is None:
        rows = Dataset(pyarrow.parquet.read_table(folder / "rows.parquet"))
    elif len(kept) < len(rows):
        rows = rows.select(kept)
    return Outcome(
        rows=rows,
        left=[Left(**row) for row in content["left"]],
        suspects=[Suspect(**row) for row in content["suspects"]],
        note=content["note"],
        kept=kept,
    )
