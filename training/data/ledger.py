"""The ledger of a preparation: what each step did, which rows left and why, and which rows need a review."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from serve.files import write_atomically
from serve.terminal.screen import Screen
from serve.terminal.sheet import Column, Sheet, number, whole
from serve.terminal.words import counted
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

    def show(self, screen: Screen) -> None:
        """Print the steps that changed something, the notes, and where the files of this ledger are."""
        changes = [count for count in self.counts if count.before != count.after or count.note]
        if changes:
            screen.print(_table(changes))
        for note in self.notes:
            screen.say(note)
        if self.overlaps and not any(overlap.rows for overlap in self.overlaps):
            screen.say(_apart(self.overlaps))
        if self.left:
            place = self.folder / QUARANTINE
            screen.say(f"{counted(len(self.left), 'row')} set aside, with reasons, in {place}")
        if self.suspects:
            place = self.folder / REVIEW
            screen.say(f"{counted(len(self.suspects), 'row')} to review in {place}")


def _apart(overlaps: Sequence[Overlap]) -> str:
    splits = list(dict.fromkeys(split for each in overlaps for split in (each.split, each.other)))
    like = overlaps[0].similarity
    what = "text" if like is None else f"text, nor one {like:g} similar to another's"
    return f"{len(overlaps)} pairs of splits compared ({', '.join(splits)}): they share no {what}"


def _table(counts: Sequence[Count]) -> Sheet:
    columns = [whole("rows of"), whole("step"), number("before"), number("after"), Column("")]
    table = Sheet("Data", columns)
    for count in counts:
        step = count.step.replace("_", " ")
        table.add_row(count.split, step, str(count.before), str(count.after), count.note)
    return table
