"""Training files as people have them. Each is read correctly, or refused with the reason."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from training.data.loading import load_rows
from training.data.readers.files import read_file
from training.recipe import RecipeError
from training.recipe.source import Source

ROWS = [
    (f"{text} number {n}", label)
    for n in range(4)
    for text, label in (("where is my parcel", "parcel"), ("my card was lost", "card"))
]
BOTH = {"parcel": 4, "card": 4}


def table(head: str = "text,label", sep: str = ",", end: str = "\n", row: str = "{t},{l}") -> str:
    lines = [head, *(row.format(n=n, t=text, l=label) for n, (text, label) in enumerate(ROWS))]
    return "".join(line.replace(",", sep) + end for line in lines)


def objects(*labels: Any, between: str = "\n") -> str:
    """JSON Lines; without `labels`, the rows have their usual labels."""
    return "".join(
        json.dumps({"text": text, "label": labels[n % len(labels)] if labels else label}) + between
        for n, (text, label) in enumerate(ROWS)
    )


LIST = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize(
    ("ending", "content", "labels"),
    [
        pytest.param("csv", table(",text,label", row="{n},{t},{l}"), BOTH, id="pandas' index"),
        pytest.param("csv", table(",,text,label", row="{n},{n},{t},{l}"), BOTH, id="index twice"),
        pytest.param("csv", table("text,label,", row="{t},{l},"), BOTH, id="trailing comma"),
        pytest.param("csv", "\ufeff" + table(end="\r\n"), BOTH, id="mark and CRLF"),
        pytest.param("csv", table(end="\r"), BOTH, id="CR alone"),
        pytest.param("csv", table(row='"{t}","{l}"'), BOTH, id="quotes"),
        pytest.param("csv", table(row="{t}, {l} "), BOTH, id="space around labels"),
        pytest.param("tsv", table(sep="\t"), BOTH, id="tabs"),
        pytest.param("csv", "text,label\na,NA\nb,None\n", {"NA": 1, "None": 1}, id="NA, None"),
        pytest.param("json", json.dumps(LIST, indent=2), BOTH, id="a list"),
        pytest.param("json", objects(), BOTH, id="JSON Lines called json"),
        pytest.param("jsonl", "\ufeff" + objects(), BOTH, id="JSON Lines with a mark"),
        pytest.param("jsonl", objects(between="\n\n"), BOTH, id="blank lines"),
        pytest.param("jsonl", objects(1, 0, 1.0, 0), {"1": 4, "0": 4}, id="1 and 1.0"),
        pytest.param("jsonl", objects("caf\u00e9", "cafe\u0301"), {"caf\u00e9": 8}, id="NFD"),
        pytest.param("jsonl", objects("a\u2028b"), {"a\u2028b": 8}, id="U+2028"),
    ],
)
def test_it_is_read(ending: str, content: str, labels: dict[str, int], tmp_path: Path) -> None:
    file = tmp_path / f"train.{ending}"
    file.write_bytes(content.encode())
    found = load_rows([file], ["text", "label"], labels=["label"]).rows
    assert Counter(found["label"]) == labels
    assert not any(text != text.strip() for text in found["text"])


@pytest.mark.parametrize(
    ("ending", "content", "says"),
    [
        ("csv", "sep=,\n" + table(), "no column 'text'; its columns are sep="),
        ("csv", table(sep=";"), "no column 'text'; its columns are text;label"),
        ("csv", table("Text,Label"), "no column 'text'; its columns are Text, Label"),
        ("csv", "text,label,label\na,b,c\n", "two columns called 'label'"),
        ("csv", table() + "a \0 b,card\n", r"train\.csv:10 cannot be read: it has a NUL character"),
        ("csv", table(row='"he said \\"{t}\\", twice",{l}'), "cannot be read: ',' expected"),
        ("json", json.dumps({"data": LIST}), "no column 'text'; its columns are data"),
        ("jsonl", objects() + '{"text": NaN, "label": "card"}\n', "an empty cell in column 'text'"),
    ],
)
def test_it_is_refused(ending: str, content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / f"train.{ending}"
    file.write_bytes(content.encode())
    with pytest.raises(RecipeError, match=says):
        load_rows([file], ["text", "label"], labels=["label"])


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "is UTF-16; save it as UTF-8"), ("latin-1", "not UTF-8")]
)
def test_another_encoding_is_refused_by_its_name(encoding: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(table().replace("lost", "perd\u00e9").encode(encoding))
    with pytest.raises(RecipeError, match=says):
        load_rows([file], ["text", "label"])


def test_a_separator_that_is_named_is_used(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text(table(sep=";"))
    assert len(list(read_file(Source(path=file, delimiter=";")))) == len(ROWS)
