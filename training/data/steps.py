"""What every step of preparation gives back, and the cache that never does one twice for the same content."""

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

ORIGIN = "__origin__"
"""Column with `file:line` of each row, for messages and the quarantine."""
WEIGHT = "__weight__"
"""Column with the weight of each row's source."""
HIDDEN = (ORIGIN, WEIGHT)
"""Columns of preparation itself, which every row has from its source on; members never see them."""
FAMILY = "__family__"
"""Column with the number of each training row's family; the rows of one are on one side of every split."""

VERSION = 2
"""Raised when a step's result for the same content changes."""
KEPT_CHARACTERS = 500
"""Of a cell in the quarantine file."""


@dataclass(frozen=True)
class Left:
    """A row that left, and why."""

    split: str
    step: str
    reason: str
    origin: str
    row: Mapping[str, str]


@dataclass(frozen=True)
class Suspect:
    """A row for a person to look at: what a model or the majority would say, and how sure it is."""

    text: str
    suggestion: str
    confidence: float
    reason: str
    origin: str
    given: str | None = None
    """The label that the row has."""


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
    """What was seen when two splits were compared."""

    split: str
    other: str
    """The one that judges."""
    rows: int
    """How many rows of `split` have a text of `other`."""
    left: bool
    """Whether they left."""
    similarity: float | None
    """From where on similar texts count as equal; None: only equal ones do."""


@dataclass(frozen=True)
class Outcome:
    """The rows behind a step, those that left in it, those to be looked at, and what it says about itself."""

    rows: Dataset
    left: Sequence[Left] = ()
    suspects: Sequence[Suspect] = ()
    note: str = ""
    kept: Sequence[int] | None = None
    """Indices of `rows` in the step's input, where they are rows of it."""


def leave(rows: Dataset, reasons: Mapping[int, str], split: str, step: str) -> Outcome:
    """The rows without those at the indices that have a reason."""
    left = [
        Left(split, step, reasons[index], rows[index][ORIGIN], shortened(rows[index]))
        for index in sorted(reasons)
    ]
    kept = [index for index in range(len(rows)) if index not in reasons]
    return Outcome(rows.select(kept) if left else rows, left, kept=kept)


def visible(rows: Dataset, columns: Sequence[str] | None = None) -> Dataset:
    """The rows with `columns` alone; without any named, with all that are not preparation's own."""
    if columns is not None:
        return rows.select_columns(list(columns))
    return rows.remove_columns([name for name in (*HIDDEN, FAMILY) if name in rows.column_names])


def inputs_of(rows: Dataset, columns: Sequence[str]) -> list[str]:
    """What each row asks, the texts in `columns` as one."""
    return ["\n".join(texts) for texts in zip(*(rows[column] for column in columns), strict=True)]


def shortened(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for the quarantine: what its source said, without the whole of very long cells."""
    own = (*HIDDEN, FAMILY)
    return {name: str(cell)[:KEPT_CHARACTERS] for name, cell in row.items() if name not in own}


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of texts, each with its length before it."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", errors="surrogatepass")
        total.update(b"%d:" % len(content))
        total.update(content)
    return total.hexdigest()


def content_digest(rows: Dataset) -> str:
    """SHA-256 of a table's columns and cells."""
    cells = (cell for name in rows.column_names for cell in (name, *map(str, rows[name])))
    return digest([str(len(rows)), *rows.column_names, digest(cells)])


class StepCache:
    """Outcomes on disk, by step, options and content; of rows that a step let through, their indices alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def outcome(
        self,
        step: str,
        options: BaseModel | Mapping[str, Any],
        inputs: Sequence[Dataset],
        compute: Callable[[], Outcome],
    ) -> Outcome:
        """The step's outcome, computed at most once for the same options and rows."""
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
    # Last, so that a folder with this file is whole.
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
