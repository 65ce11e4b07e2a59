"""The files of a review: the queue of rows, and a person's decisions."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serve.files import write_atomically
from training.data.suspect import Suspect
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Decision:
    """A person's decision on one text: its label, or None if the text must not be used."""

    text: str
    label: str | None


def write_queue(file: Path, suspects: Iterable[Suspect]) -> None:
    """Write the queue as JSON Lines; without suspects, the file is empty."""
    lines = [json.dumps(asdict(suspect), ensure_ascii=False) + "\n" for suspect in suspects]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(lines))


def read_queue(file: Path) -> list[Suspect]:
    """Read a review queue. Raises RecipeError if the file is not one."""
    try:
        return TypeAdapter(list[Suspect]).validate_python(_entries(file))
    except ValidationError:
        raise RecipeError(
            f"{file} is not a review queue; `choir prepare` and `choir train` write one as review.jsonl"
        ) from None


def read_decisions(file: Path) -> list[Decision]:
    """Read the decisions so far, one for each text: the last one wins. Raises RecipeError if the file holds none."""
    try:
        decided = TypeAdapter(list[Decision]).validate_python(_entries(file))
    except ValidationError:
        raise RecipeError(f"{file} holds no decisions of `choir annotate`") from None
    return list({decision.text: decision for decision in decided}.values())


def add_decision(file: Path, decision: Decision) -> None:
    """Append one decision to the file, so that an interrupted review loses nothing."""
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
