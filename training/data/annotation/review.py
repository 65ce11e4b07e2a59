"""The review queue: rows that wait for a person, and what the person decided."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serve.files import write_atomically
from training.data.steps import Suspect
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Decision:
    """A person's word on one text: its label, or None for a text that should not be used."""

    text: str
    label: str | None


def write_queue(file: Path, suspects: Iterable[Suspect]) -> None:
    """One row a line; a queue without rows is an empty file."""
    lines = [json.dumps(asdict(suspect), ensure_ascii=False) + "\n" for suspect in suspects]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(lines))


def read_queue(file: Path) -> list[Suspect]:
    """Raises RecipeError for a file that is no review queue."""
    try:
        return TypeAdapter(list[Suspect]).validate_python(_entries(file))
    except ValidationError:
        raise RecipeError(
            f"{file} is no review queue; `choir prepare` and `choir train` write them as review.jsonl"
        ) from None


def read_decisions(file: Path) -> list[Decision]:
    """What was decided so far, a later word on the same text winning. Raises RecipeError for another kind of file."""
    try:
        decided = TypeAdapter(list[Decision]).validate_python(_entries(file))
    except ValidationError:
        raise RecipeError(f"{file} holds no decisions of `choir annotate`") from None
    return list({decision.text: decision for decision in decided}.values())


def add_decision(file: Path, decision: Decision) -> None:
    """Append one decision; an interrupted review loses nothing."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(decision), ensure_ascii=False) + "\n")


def _entries(file: Path) -> list[object]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RecipeError(f"{file} does not exist") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{file} is not UTF-8") from None
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        raise RecipeError(f"{file} is not JSON Lines") from None
