"""A data scientist with a CSV of 300 rows: the recipe and the commands of docs/training.md, word by word.

Only the base is another one, made from nothing, so that it takes seconds."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len

from tests.journeys.commands import COLUMNS, Ran, Shell, blocks

PAGE = "training.md"
BASE = {
    "kind": "encoder",
    "scratch": {"architecture": "bert", "hidden": 64, "layers": 1, "heads": 2, "vocabulary": 400}
    | {"context": 64, "epochs": 1},
}
ASKS = {
    "card": ["my card is lost", "where is the new card", "the card does not work"],
    "transfer": ["the transfer is late", "send money abroad", "my transfer failed"],
    "top_up": ["add money to my account", "the top up failed", "how do i top up"],
}
UNUSABLE = [["", "card"], ["what is this", ""]]
COPIED = ("bundle: ", "report: ", "next: ", "adapter: ", "serve it: ")
"""Lines with something to copy stay on one line, also on a terminal."""


def write(file: Path, count: int, first: int = 0, more: list[list[str]] | None = None) -> None:
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "intent"])
        for number in range(first, first + count):
            label = list(ASKS)[number % len(ASKS)]
            rows.writerow([f"{ASKS[label][number // 3 % 3]} please {number}", label])
        rows.writerows(more or [])


def begun(folder: Path, *, terminal: bool) -> tuple[Shell, dict[str, str]]:
    """Write the page's recipe and the rows; return a shell there, and the page's commands by their name."""
    recipe, commands, *_ = blocks(PAGE)
    content: dict[str, Any] = yaml.safe_load(recipe)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content | {"base": BASE}))
    write(folder / "train.csv", 298, more=UNUSABLE)
    by_name = {line.split()[1]: line for line in commands.splitlines()}
    assert list(by_name) == ["prepare", "train", "evaluate", "serve"]
    return Shell(folder, terminal), by_name


def well_shown(ran: Ran, terminal: bool) -> None:
    """On a terminal no line is wider than it, and nothing is cut; in a pipe there is no colour, and no talk of one."""
    assert ran.status == 0, ran.text
    assert "…" not in ran.plain
    assert "bold" not in ran.plain
    if not terminal:
        assert "\x1b" not in ran.text
        return
    for line in ran.lines:
        longest = max(map(cell_len, line.split()), default=0)
        if not line.startswith(COPIED) and longest < COLUMNS:
            assert cell_len(line) <= COLUMNS, line


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_the_rows_are_looked_at_first(tmp_path: Path, terminal: bool) -> None:
    shell, commands = begun(tmp_path, terminal=terminal)
    ran = shell.run(commands["prepare"])
    well_shown(ran, terminal)
    words = " ".join(ran.plain.split())
    assert "2 rows set aside, with reasons, in rows/quarantine.jsonl" in words
    assert len((tmp_path / "rows" / "quarantine.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_from_a_csv_to_a_retrained_member(tmp_path: Path, terminal: bool) -> None:
    shell, commands = begun(tmp_path, terminal=terminal)
    trained = shell.run(commands["train"])
    well_shown(trained, terminal)
    report = json.loads((tmp_path / "bundle" / "report" / "metrics.json").read_text())
    validation = next(each for each in report["reports"] if each["data"] == "validation")
    served = next(row for row in validation["rows"] if row["served"])
    words = " ".join(trained.plain.split())
    assert f"intents: {served['name']} {served['scores']['accuracy']:.4f}, best member" in words
    assert "p = " not in words
    assert Path(trained.after("report: ")).is_file()
    assert trained.after("next: ") == f"choir serve {tmp_path / 'bundle'}"

    evaluated = shell.run(commands["evaluate"])
    well_shown(evaluated, terminal)
    assert "intents@1 on" in evaluated.plain

    # A week later: newer rows, and the old ones are gone.
    (tmp_path / "train.csv").unlink()
    known = (tmp_path / "bundle" / ".choir-train" / "held" / "validation.parquet").is_file()
    assert known
    write(tmp_path / "new.csv", 90, first=1000)
    command, *_ = blocks(PAGE, "Retrain one member")
    again = shell.run(command)
    well_shown(again, terminal)
    words = " ".join(again.plain.split())
    assert f"a on {validation['count']} validation rows: accuracy" in words
    assert "intents with it: accuracy" in words
    folder = Path(again.after("adapter: "))
    assert (folder / "adapter_model.safetensors").is_file()
    assert again.after("serve it: ") == f"choir swap intents a={folder.as_uri()}"


def test_a_wrong_member_or_bundle_is_said_in_one_sentence(tmp_path: Path) -> None:
    shell, _ = begun(tmp_path, terminal=False)
    for line, said in (
        ("choir train recipe.yaml --member a --into bundle", "there is no folder bundle;"),
        ("choir train recipe.yaml --member d --into bundle", "has no member 'd'"),
        ("choir train recipe.yaml", "--out BUNDLE"),
        ("choir train recipe.yaml --member a", "--member NAME and --into BUNDLE belong together"),
    ):
        ran = shell.run(line)
        assert ran.status != 0
        [only] = ran.text.strip().splitlines()
        assert only.startswith("choir: ")
        assert said in only
