"""The ledger of a preparation: what each step did, which rows left and why, and which rows need a review."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serve.files import write_atomically
from training.data.annotation.review import write_queue
from training.data.steps import Count, Left, Outcome, Overlap
from training.data.suspect import Suspect

QUARANTINE, REVIEW, COUNTS = "quarantine.jsonl", "review.jsonl", "counts.json"


@dataclass
class Ledger:
    """Filled by each step, and written to `folder` at the end, or before an error that refers to it."""

    folder: Path
    counts: list[Count] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes on the data for a person, in sentences."""
    overlaps: list[Overlap] = field(default_factory=list)
    """The overlap of each pair of splits."""

    def take(self, step: str, split: str, before: int, outcome: Outcome) -> Dataset:
        """Record the outcome of a step, and return its rows. `before` is the number of rows before the step."""
        self.counts.append(Count(split, step, before, len(outcome.rows), outcome.note))
        self.left += outcome.left
        self.suspects += outcome.suspects
        return outcome.rows

    def write(self) -> None:
        """Write `quarantine.jsonl`, `review.jsonl` and `counts.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.left]
        write_atomically(self.folder / QUARANTINE, "".join(lines))
        write_queue(self.folder / REVIEW, self.suspects)
        content = json.dumps(self.facts(), indent=2) + "\n"
        write_atomically(self.folder / COUNTS, content)

    def facts(self) -> dict[str, Any]:
        """Return counts, notes and overlaps as JSON."""
        return {
            "counts": [asdict(count) for count in self.counts],
            "notes": list(self.notes),
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
        }

    def show(self, console: Console) -> None:
        """Print the steps that changed something, the notes, and where the files of this ledger are."""
        changes = [count for count in self.counts if count.before != count.after or count.note]
        if changes:
            console.print(_table(changes))
        for note in self.notes:
            console.print(note, soft_wrap=True, highlight=False, markup=False)
        if self.overlaps and not any(overlap.rows for overlap in self.overlaps):
            console.print(_apart(self.overlaps), soft_wrap=True, highlight=False, markup=False)
        files = ((QUARANTINE, "rows left", self.left), (REVIEW, "rows to review", self.suspects))
        for name, what, rows in files:
            if rows:
                where = f"{len(rows)} {what}: {self.folder / name}"
                console.print(where, soft_wrap=True, highlight=False, markup=False)


def _apart(overlaps: Sequence[Overlap]) -> str:
    splits = list(dict.fromkeys(split for each in overlaps for split in (each.split, each.other)))
    like = overlaps[0].similarity
    what = "text" if like is None else f"text, nor one {like:g} similar to another's"
    return f"{len(overlaps)} pairs of splits compared ({', '.join(splits)}): they share no {what}"


def _table(counts: Sequence[Count]) -> Table:
    table = Table(title="Data", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("split", "step"):
        table.add_column(heading)
    for heading in ("rows before", "after"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for count in counts:
        table.add_row(
            count.split,
            count.step.replace("_", " "),
            str(count.before),
            str(count.after),
            escape(count.note),
        )
    return table
