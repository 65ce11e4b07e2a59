import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.loading import load_rows
from training.recipe import RecipeError

ROWS = [{"text": "NA", "label": "1"}, {"text": 'say "null", please', "label": "2"}]


def write(kind: str, folder: Path) -> Path:
    file = folder / f"rows.{kind}"
    if kind == "csv":
        file.write_text('text,label,other\nNA,1,x\n"say ""null"", please",2,y\n')
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    rows = load_rows([write(kind, tmp_path)], ["text", "label"]).rows
    assert rows.to_list() == ROWS


def test_several_files_are_one_table(tmp_path: Path) -> None:
    file = write("csv", tmp_path)
    assert len(load_rows([file, file], ["text"]).rows) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nhello,x\n", "no column 'intent'; its columns are text, label"),
        ("a.csv", "text,intent\nhello,x\n ,y\n", "a.csv:3 has an empty cell in column 'text'"),
        ("a.csv", "text,intent\n", "a.csv has no rows"),
        ("a.jsonl", "{broken", "a.jsonl:1 cannot be read: not a JSON object"),
        ("a.xlsx", "x", "data files must be CSV"),
        (None, "", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(
    name: str | None, content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / (name or "none.csv")
    if name:
        file.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_rows([file], ["text", "intent"])
