"""Cells become texts by one rule, and its changes are noted."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from training.data.collect import collect
from training.data.readers.records import class_names
from training.data.readers.tables import read_hub
from training.data.steps import Outcome
from training.data.targets import known_labels
from training.recipe.source import Source


def read(file: Path, **columns: Any) -> Outcome:
    return collect([Source(path=file)], ["text", "label"], **columns)


def jsonl(folder: Path, labels: list[Any]) -> Path:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"text": f" {n} ", "label": label}) for n, label in enumerate(labels)]
    file.write_text("\n".join(lines))
    return file


def test_a_label_has_one_spelling_and_each_other_one_is_counted(tmp_path: Path) -> None:
    labels = ["card", " card", "card ", "caf\u00e9", "cafe\u0301", "cafe\u0301", "a b"]
    outcome = read(jsonl(tmp_path, labels), labels=["label"])
    assert list(outcome.rows["label"]) == ["card"] * 3 + ["caf\u00e9"] * 3 + ["a b"]
    assert outcome.note == (
        "4 cells of label respelled: 'cafe\\u0301' as 'caf\u00e9' (2), ' card' as 'card' (1), "
        "'card ' as 'card' (1)"
    )
    # An input text is never changed.
    assert outcome.rows[1]["text"] == " 1 "


def test_spellings_of_one_label_are_never_counted_as_two(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,card\nb, card\nc,card \nd,parcel\n")
    assert known_labels("classification", list(read(file).rows["label"])) == ["card", "parcel"]


def test_whole_numbers_are_one_label_however_a_source_writes_them(tmp_path: Path) -> None:
    outcome = read(jsonl(tmp_path, [1, 1.0, 0, 2.5]), labels=["label"])
    assert list(outcome.rows["label"]) == ["1", "1", "0", "2.5"]
    assert outcome.note == "1 cell of label respelled: '1.0' as '1' (1)"


def test_a_label_with_the_sign_between_labels_is_no_two_labels(tmp_path: Path) -> None:
    outcome = read(jsonl(tmp_path, [["C|C++", "code"], [" code "], "a | b"]), sets=["label"])
    assert list(outcome.rows["label"]) == ["code", "a|b"]
    [left] = outcome.left
    assert left.origin == "rows.jsonl:1"
    assert "the label 'C|C++' in column 'label' has a |" in left.reason


def test_what_is_put_aside_can_be_written(tmp_path: Path) -> None:
    outcome = read(jsonl(tmp_path, [["a"], ["C|C++", "half \ud83d"]]), sets=["label"])
    [left] = outcome.left
    json.dumps([left.reason, dict(left.row)], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "said", [[], {"_type": "List"}, {"feature": {"_type": "Value"}}, "text", {"names": ["a"]}]
)
def test_a_column_that_says_nothing_of_names_has_none(said: Any) -> None:
    labels = {"names": ["card", "parcel"], "_type": "ClassLabel"}
    for known in (labels, [labels], {"_type": "Sequence", "feature": labels}):
        assert class_names({"a": said, "b": known}) == {"b": ["card", "parcel"]}


def test_a_nul_is_not_a_text(tmp_path: Path) -> None:
    outcome = read(jsonl(tmp_path, ["a", "a\0"]))
    assert [left.reason for left in outcome.left] == ["it has a NUL character"]


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A Parquet file in which labels are numbers, and their names are in its head, as `datasets` writes it."""
    names = ClassLabel(names=["card", "parcel"])
    features = Features({"text": Value("string"), "label": names, "several": List(names)})
    content = {"text": list("abcd"), "label": [0, 1, 1, -1], "several": [[0, 1], [], [1], [0]]}
    file = tmp_path / "named.parquet"
    Dataset.from_dict(content, features=features).to_parquet(str(file))
    return file


def test_numbers_are_read_as_the_names_that_their_file_has(named: Path) -> None:
    outcome = collect([Source(path=named)], ["text", "label", "several"], sets=["several"])
    # A row without a label has an empty cell, which preparation refuses or puts into quarantine.
    assert list(outcome.rows["label"]) == ["card", "parcel", "parcel", ""]
    assert list(outcome.rows["several"]) == ["card|parcel", "", "parcel", "card"]
    assert "4 cells of label read as the source's names" in outcome.note


def test_numbers_of_the_hub_are_read_as_their_names(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_parquet(str(named), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: rows)
    source = Source(hub="org/messages", revision="main")
    outcome = collect([source], ["text", "label"], labels=["label"])
    assert list(outcome.rows["label"]) == ["card", "parcel", "parcel", ""]
    assert len(list(read_hub(source))) == 4


def test_a_number_without_a_name_is_put_aside(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    features = Features({"text": Value("string"), "label": ClassLabel(names=["card", "parcel"])})
    whole = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    table = whole.with_format("arrow")[:]
    wrong = table.set_column(1, "label", [[0, 5]]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(wrong, tmp_path / "rows.parquet")
    outcome = read(tmp_path / "rows.parquet")
    assert list(outcome.rows["label"]) == ["card"]
    assert [left.reason for left in outcome.left] == ["5 is not the number of one of the 2 labels"]
