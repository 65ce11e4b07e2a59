"""Preparation of a recipe's data: good data, and every kind of bad data. Every row that leaves is accounted for."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from choir_cli.main import app
from tests.training.conftest import recipe_content
from training.data.steps import FAMILY
from training.preparation import Prepared, load_splits, prepare
from training.recipe import Recipe, RecipeError, parse_recipe

LABELS = ("card", "cash", "transfer")


def texts(label: str, count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"{label} question number {n} of all", label) for n in range(start, start + count)]


def write(file: Path, rows: list[tuple[str, str]], encoding: str = "utf-8") -> None:
    lines = "".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows])
    file.write_text(lines, encoding=encoding)


def recipe(folder: Path, **data: Any) -> Recipe:
    """Classification of the rows of `train.csv` and `test.csv`, if it exists."""
    content = recipe_content()
    content["base"] = {"kind": "encoder", "path": "nowhere"}
    content["data"] = {"train": "train.csv", "validation_fraction": 0.25, **data}
    if (folder / "test.csv").exists():
        content["data"]["test"] = "test.csv"
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "members": [{"name": "a"}],
    }
    return parse_recipe(content | {"ensembles": [ensemble]}, folder=folder)


@pytest.fixture
def rows(tmp_path: Path) -> list[tuple[str, str]]:
    """20 rows of each label in `train.csv`, and 4 of each in `test.csv`."""
    good = [row for label in LABELS for row in texts(label, 20)]
    write(tmp_path / "train.csv", good)
    write(tmp_path / "test.csv", [row for label in LABELS for row in texts(label, 4, 100)])
    return good


def accounted(prepared: Prepared, read: int) -> None:
    """Every row that was read is in a split or in the quarantine."""
    splits = prepared.splits
    kept = len(splits.train) + len(splits.validation) + (len(splits.test) if splits.test else 0)
    assert kept + len(prepared.ledger.left) == read
    file = prepared.ledger.folder / "quarantine.jsonl"
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(written) == len(prepared.ledger.left)
    assert all(row["reason"] and row["origin"] and row["step"] for row in written)
    counts = json.loads((prepared.ledger.folder / "counts.json").read_text())["counts"]
    lost = sum(c["before"] - c["after"] for c in counts if c["step"] != "split")
    assert lost == len(written)


def test_good_rows_all_stay(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    prepared = prepare(recipe(tmp_path, clean={"duplicates": "exact"}), tmp_path / "work")
    accounted(prepared, 72)
    assert prepared.ledger.left == []
    assert len(prepared.splits.train) == 45
    assert Counter(prepared.splits.validation["label"]) == dict.fromkeys(LABELS, 5)


def test_the_same_recipe_gives_the_same_splits(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    wanted = recipe(tmp_path, clean={"duplicates": "near"})
    first = load_splits(wanted, tmp_path / "work")
    for folder in ("work", "fresh"):
        again = load_splits(wanted, tmp_path / folder)
        assert again.train.to_list() == first.train.to_list()
        assert again.validation.to_list() == first.validation.to_list()


def test_without_cleaning_nothing_leaves_and_odd_rows_are_noted(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    leak = ("card question number 100 of all", "card")
    write(tmp_path / "train.csv", [*rows, rows[0], (rows[1][0], "cash"), leak])
    prepared = prepare(recipe(tmp_path), tmp_path / "work")
    accounted(prepared, 75)
    assert [note.split(";")[0] for note in prepared.ledger.notes] == [
        "1 of 63 training rows repeat an earlier row",
        "2 of 63 training rows contradict a row with the same text",
        "1 of 16 validation rows have a text of the test rows",
    ]


def test_a_missing_column(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    (tmp_path / "train.csv").write_text("text,intent\nhello,card\n")
    for clean in (None, {}):
        with pytest.raises(RecipeError, match="no column 'label'; its columns are text, intent"):
            prepare(recipe(tmp_path, clean=clean), tmp_path / "work")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_an_empty_file(tmp_path: Path, rows: list[tuple[str, str]], content: str) -> None:
    for file in ("train.csv", "test.csv"):
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(content)
        for clean in (None, {}):
            with pytest.raises(RecipeError, match=f"{file} has no rows"):
                prepare(recipe(tmp_path, clean=clean), tmp_path / "work")
        (tmp_path / file).write_text(before)


def test_one_class_only(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", texts("card", 20))
    for clean in (None, {}):
        with pytest.raises(RecipeError, match="all 15 training rows have the same label, 'card'"):
            prepare(recipe(tmp_path, clean=clean), tmp_path / "work")


def test_labels_that_training_never_saw(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    write(tmp_path / "test.csv", [*texts("card", 3, 100), *texts("weather", 2)])
    asked = recipe(tmp_path, clean={"unseen_labels": "quarantine"})
    prepared = prepare(asked, tmp_path / "work")
    accounted(prepared, 65)
    assert Counter(left.step for left in prepared.ledger.left) == {"unseen_labels": 2}
    write(tmp_path / "test.csv", texts("weather", 2))
    with pytest.raises(RecipeError, match="none of the 2 test rows has a label of the training"):
        prepare(asked, tmp_path / "work")


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_thirty_per_cent_duplicates(
    duplicates: str, tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    again = [(text.upper() + " ", label) for text, label in rows[:26]]
    write(tmp_path / "train.csv", [*rows, *again])
    asked = recipe(tmp_path, clean={"duplicates": duplicates, "similarity": 0.99})
    prepared = prepare(asked, tmp_path / "work")
    accounted(prepared, 98)
    assert Counter(left.step for left in prepared.ledger.left) == {"duplicates": 26}
    assert len(set(prepared.splits.train["text"])) == len(prepared.splits.train)


def test_mixed_encodings(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    good = (tmp_path / "train.csv").read_bytes()
    (tmp_path / "train.csv").write_bytes(good + "frühstück,card\n".encode("latin-1") * 3)
    with pytest.raises(RecipeError, match=r"train\.csv:62 cannot be read: not UTF-8 \(and 2 more"):
        prepare(recipe(tmp_path), tmp_path / "work")
    prepared = prepare(recipe(tmp_path, clean={}), tmp_path / "work")
    accounted(prepared, 75)
    assert Counter(left.step for left in prepared.ledger.left) == {"unreadable": 3}


def test_empty_cells(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    write(tmp_path / "train.csv", [*rows, ("hello", ""), (" ", "card")])
    with pytest.raises(RecipeError, match=r"train\.csv:62 has an empty cell in column 'label'"):
        prepare(recipe(tmp_path), tmp_path / "work")
    prepared = prepare(recipe(tmp_path, clean={}), tmp_path / "work")
    accounted(prepared, 74)
    assert Counter(left.step for left in prepared.ledger.left) == {"missing": 2}


def test_cleaning_that_takes_most_rows_stops(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    asked = recipe(tmp_path, clean={"min_characters": 100})
    with pytest.raises(RecipeError, match=r"0 of 60 train rows are left; see .*quarantine\.jsonl"):
        prepare(asked, tmp_path / "work")
    assert (tmp_path / "work" / "data" / "quarantine.jsonl").read_text().count("\n") == 60


def test_test_rows_that_all_are_unreadable_stop(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    (tmp_path / "test.csv").write_bytes("text,label\nfrüh,card\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="0 of 1 test rows are left"):
        prepare(recipe(tmp_path, clean={"max_loss": 1}), tmp_path / "work")


def test_leaks_leave_training_and_never_the_test_rows(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    leak = ("card question number 100 of all", "card")
    write(tmp_path / "train.csv", [*rows, leak])
    prepared = prepare(recipe(tmp_path, clean={}), tmp_path / "work")
    accounted(prepared, 73)
    assert [left.reason for left in prepared.ledger.left] == ["it has the text of test.csv:2"]
    assert prepared.splits.test is not None
    assert len(prepared.splits.test) == 12
    with pytest.raises(RecipeError, match=r"1 train row leaks: of train\.csv:62"):
        prepare(recipe(tmp_path, clean={"leakage": "fail"}), tmp_path / "work")


def test_test_rows_split_off_by_group(tmp_path: Path) -> None:
    lines = ["text,label,customer"]
    lines += [f"question {n},{LABELS[n % 3]},{n // 5}" for n in range(100)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    split = {"by": "group", "column": "customer", "test_fraction": 0.2}
    prepared = prepare(recipe(tmp_path, split=split), tmp_path / "work")
    accounted(prepared, 100)
    splits = prepared.splits
    assert splits.test is not None
    assert splits.train.column_names == ["text", "label", FAMILY]
    customers = [
        {int(text.split()[1]) // 5 for text in part["text"]}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(map(len, customers)) == len(set.union(*customers)) == 20
    groups = [int(text.split()[1]) // 5 for text in splits.validation["text"]]
    assert [family // 5 for family in splits.families] == groups


def test_weights_apply_to_training_rows_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [row for label in LABELS for row in texts(label, 20)])
    write(tmp_path / "b.csv", [row for label in LABELS for row in texts(label, 20, 50)])
    sources = ["a.csv", {"path": "b.csv", "weight": 2}]
    splits = prepare(recipe(tmp_path, train=sources), tmp_path / "work").splits
    times = Counter(splits.train["text"])
    for text, count in times.items():
        assert count == (2 if int(text.split()[3]) >= 50 else 1)
    assert max(Counter(splits.validation["text"]).values()) == 1
    assert not set(times) & set(splits.validation["text"])


def test_rules_label_a_pool_and_a_person_decides_the_rest(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    (tmp_path / "pool.csv").write_text("text\nlost card at noon\nhello there\natm ate my card\n")
    rules = [{"label": "card", "pattern": "card"}, {"label": "cash", "pattern": "atm"}]
    annotate = {"label": "label", "unlabelled": "pool.csv", "rules": rules, "confidence": 0.6}
    first = prepare(recipe(tmp_path, annotate=annotate), tmp_path / "work")
    known = [*first.splits.train["text"], *first.splits.validation["text"]]
    assert "lost card at noon" in known
    assert "atm ate my card" not in known
    queue = tmp_path / "work" / "data" / "review.jsonl"
    waiting = [json.loads(line)["text"] for line in queue.read_text().splitlines()]
    assert waiting == ["hello there", "atm ate my card"]
    reviewed = tmp_path / "reviewed.jsonl"
    arguments = [
        "annotate",
        str(queue),
        "--out",
        str(reviewed),
        "--labels",
        str(tmp_path / "l.txt"),
    ]
    (tmp_path / "l.txt").write_text("\n".join(LABELS))
    assert CliRunner().invoke(app, arguments, input="-\ncash\n").exit_code == 0
    annotate["reviewed"] = "reviewed.jsonl"
    again = prepare(recipe(tmp_path, annotate=annotate), tmp_path / "work").splits
    labels = dict(
        zip(
            [*again.train["text"], *again.validation["text"]],
            [*again.train["label"], *again.validation["label"]],
            strict=True,
        )
    )
    assert labels["atm ate my card"] == "cash"
    assert "hello there" not in labels


def test_choir_prepare_writes_splits_and_the_ledger(
    tmp_path: Path, rows: list[tuple[str, str]]
) -> None:
    write(tmp_path / "train.csv", [*rows, rows[0]])
    content = recipe(tmp_path, clean={}).model_dump_json(exclude_unset=True)
    (tmp_path / "recipe.yaml").write_text(content)  # JSON is YAML
    done = CliRunner().invoke(
        app, ["prepare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "1 row set aside, with reasons, in" in done.output
    assert "3 pairs of splits compared" in done.output
    assert "they share no text" in done.output
    files = {file.name for file in (tmp_path / "out").iterdir()} - {".cache"}
    assert files == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "quarantine.jsonl", "review.jsonl", "counts.json",
    }  # fmt: skip
    first = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert set(first) == {"text", "label"}
