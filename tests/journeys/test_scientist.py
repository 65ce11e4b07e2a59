"""A data scientist with a CSV of 300 rows: the recipe and the commands of docs/training.md, word by word.

Only the base is another one, made from nothing, so that it takes seconds."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.journeys.shell import Said, Shell, commands

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BASE = {
    "kind": "encoder",
    "scratch": {
        "architecture": "bert",
        "hidden": 64,
        "layers": 1,
        "heads": 2,
        "vocabulary": 400,
        "context": 64,
        "epochs": 1,
    },
}
ASKS = {
    "card": ["my card is lost", "where is the new card", "the card does not work"],
    "transfer": ["the transfer is late", "send money abroad", "my transfer failed"],
    "top_up": ["add money to my account", "the top up failed", "how do i top up"],
}
UNUSABLE = [["", "card"], ["what is this", ""]]
Run = Callable[[str], Said]


def told(beginning: str) -> str:
    """Return the page's one command that begins so."""
    [command] = (each for each in commands(PAGE) if each.startswith(beginning))
    return command


def write(file: Path, count: int, first: int = 0, more: list[list[str]] | None = None) -> None:
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "intent"])
        for number in range(first, first + count):
            label = list(ASKS)[number % len(ASKS)]
            rows.writerow([f"{ASKS[label][number // 3 % 3]} please {number}", label])
        rows.writerows(more or [])


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder with the page's recipe, and 300 rows of which two cannot be used."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    content: dict[str, Any] = yaml.safe_load(blocks[0])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content | {"base": BASE}))
    write(tmp_path / "train.csv", 298, more=UNUSABLE)
    return Shell(tmp_path)


def after(said: Said, start: str) -> str:
    """Return the rest of the line that begins with `start`: it is on one line, as it is to be copied."""
    lines = said.text.splitlines()
    return next(line for line in lines if line.startswith(start)).removeprefix(start)


def joined(said: Said) -> str:
    """The text without line breaks, which are elsewhere on a terminal than in a pipe."""
    return " ".join(said.text.split())


def test_the_rows_are_looked_at_first(shell: Shell) -> None:
    said = shell.both(told("choir prepare recipe.yaml"))
    assert said.status == 0
    assert "2 rows set aside, with reasons, in rows/quarantine.jsonl" in joined(said)
    assert len((shell.folder / "rows" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_a_wrong_member_or_bundle_is_said_in_one_sentence(shell: Shell) -> None:
    for line, words in (
        ("choir train recipe.yaml --member a --into bundle", "there is no folder bundle;"),
        ("choir train recipe.yaml --member aa --into .", "has no member 'aa' (did you mean a?)"),
        ("choir train recipe.yaml", "--out BUNDLE"),
    ):
        said = shell.pipe(line)
        assert said.status != 0
        [only] = said.text.strip().splitlines()
        assert only.startswith("choir: ")
        assert words in only


@pytest.mark.slow
@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_from_a_csv_to_a_retrained_member(shell: Shell, where: str) -> None:
    run: Run = getattr(shell, where)
    # No engine is started here: its part of the table is tested with the leaderboard.
    trained = run(told("choir train recipe.yaml --out") + " --no-timing")
    assert trained.status == 0
    bundle = shell.folder / "bundle"
    report = json.loads((bundle / "report" / "metrics.json").read_text())
    validation = next(each for each in report["reports"] if each["data"] == "validation")
    served = next(row for row in validation["rows"] if row["served"])
    words = joined(trained)
    assert f"intents: {served['name']} {served['scores']['accuracy']:.4f}, best member" in words
    assert "p = " not in words
    assert Path(after(trained, "report: ")).is_file()
    assert after(trained, "next: ") == f"choir serve {bundle}"

    evaluated = run(told("choir evaluate bundle"))
    assert evaluated.status == 0
    assert "intents@1 on" in evaluated.text
    assert "bold" not in evaluated.text

    # A week later: newer rows, and the old ones are gone.
    (shell.folder / "train.csv").unlink()
    write(shell.folder / "new.csv", 90, first=1000)
    again = run(told("choir train recipe.yaml --member"))
    assert again.status == 0
    assert f"a on {validation['count']} validation rows: accuracy" in joined(again)
    assert "intents with it: accuracy" in joined(again)
    folder = Path(after(again, "adapter: "))
    assert (folder / "adapter_model.safetensors").is_file()
    assert after(again, "serve it: ") == f"choir swap intents a={folder.as_uri()}"
