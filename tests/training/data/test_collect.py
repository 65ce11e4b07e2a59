"""Sources of every kind, and rows that cannot be read."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.collect import collect
from training.data.readers import lines
from training.data.steps import ORIGIN, Outcome, visible
from training.recipe.source import Source
from training.recipe.values import RecipeError

ROWS = [{"text": "NA", "label": "1"}, {"text": 'say "null",\nplease', "label": "2"}]


def read(*sources: Source) -> Outcome:
    return collect(sources, ["text", "label"])


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    return visible(outcome.rows).to_list()


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, in place of an object store."""
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()


def test_an_object_store_is_read_like_a_folder(memory: Any) -> None:
    memory.pipe("/bucket/rows.csv", b'text,label\nNA,1\n"say ""null"",\nplease",2\n')
    memory.pipe("/bucket/rows.jsonl", "\n".join(map(json.dumps, ROWS)).encode())
    pq.write_table(pa.Table.from_pylist(ROWS), memory.open("/bucket/rows.parquet", "wb"))
    for ending in ("csv", "jsonl", "parquet"):
        outcome = read(Source(url=f"memory://bucket/rows.{ending}"))
        assert rows_of(outcome) == ROWS
        assert outcome.left == []


def test_a_query_gives_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "messages.db") as database:
        database.execute("create table messages (body text, intent integer)")
        database.executemany("insert into messages values (?, ?)", [("hello", 1), ("bye", 2)])
    monkeypatch.setenv("CHOIR_TEST_DB", f"sqlite:///{tmp_path}/messages.db")
    source = Source(
        sql="select body, intent from messages order by body",
        database="${CHOIR_TEST_DB}",
        columns={"text": "body", "label": "intent"},
    )
    assert rows_of(read(source)) == [{"text": "bye", "label": "2"}, {"text": "hello", "label": "1"}]
    # The recipe is stored in the bundle; the variable's value is not.
    assert str(tmp_path) not in source.model_dump_json()
    broken = source.model_copy(update={"sql": "select body from nowhere"})
    with pytest.raises(RecipeError, match="the query cannot be run: no such table: nowhere"):
        read(broken)


def test_sources_are_merged_with_their_columns_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,x\n")
    (tmp_path / "b.tsv").write_text('utterance\tintent\nsay "two\ty\n')
    (tmp_path / "c.json").write_text(json.dumps([{"text": "three", "label": ["x", "y"]}]))
    outcome = read(
        Source(path=tmp_path / "a.csv"),
        Source(
            path=tmp_path / "b.tsv",
            quotes=False,
            columns={"text": "utterance", "label": "intent"},
        ),
        Source(path=tmp_path / "c.json"),
    )
    assert rows_of(outcome) == [
        {"text": "one", "label": "x"},
        {"text": 'say "two', "label": "y"},
        {"text": "three", "label": "x|y"},
    ]
    assert list(outcome.rows[ORIGIN]) == ["a.csv:2", "b.tsv:2", "c.json:1"]


def test_csv_without_a_header_is_given_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one;x\ntwo;y\n")
    source = Source(path=tmp_path / "a.csv", delimiter=";", names=["text", "label"])
    assert rows_of(read(source))[0] == {"text": "one", "label": "x"}


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nçà et là,x\n".encode("cp1252"))
    source = Source(path=tmp_path / "a.csv", encoding="cp1252")
    assert rows_of(read(source)) == [{"text": "çà et là", "label": "x"}]


def test_utf_8_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\none,x\n")
    assert rows_of(read(Source(path=tmp_path / "a.csv"))) == [{"text": "one", "label": "x"}]


def test_lines_may_end_with_carriage_returns_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,label\rone,x\r"t, wo",y\r')
    assert rows_of(read(Source(path=tmp_path / "a.csv"))) == [
        {"text": "one", "label": "x"},
        {"text": "t, wo", "label": "y"},
    ]


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    """Row numbers, as pandas writes them, saved twice."""
    (tmp_path / "a.csv").write_text(",,text,label\n0,0,one,x\n")
    assert rows_of(read(Source(path=tmp_path / "a.csv"))) == [{"text": "one", "label": "x"}]


def test_lines_of_another_encoding_are_put_aside_one_by_one(tmp_path: Path) -> None:
    written = ["text,label", "one,x", "grüße,x", "two,y", "łódź,y"]
    content = b"\n".join(line.encode("latin-1" if "ü" in line else "utf-8") for line in written)
    (tmp_path / "a.csv").write_bytes(content)
    outcome = read(Source(path=tmp_path / "a.csv"))
    assert [row["text"] for row in rows_of(outcome)] == ["one", "two", "łódź"]
    [left] = outcome.left
    assert (left.origin, left.reason) == ("a.csv:3", "not UTF-8")


def test_broken_rows_are_put_aside_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\none,x\ntwo\nthree,y,z\n"four" five,x\nsix,y\n')
    (tmp_path / "b.jsonl").write_text('{"text": "one", "label": "x"}\n{"text": \n[1]\n')
    outcome = read(Source(path=tmp_path / "a.csv"), Source(path=tmp_path / "b.jsonl"))
    assert [row["text"] for row in rows_of(outcome)] == ["one", "six", "one"]
    assert [left.origin for left in outcome.left] == [
        "a.csv:3", "a.csv:4", "a.csv:5", "b.jsonl:2", "b.jsonl:3",
    ]  # fmt: skip
    assert outcome.left[0].reason == "1 cell where the header has 2 columns"


def test_a_quote_that_swallows_rows_is_not_one_long_row(tmp_path: Path) -> None:
    """A parser that is not strict makes rows 3 to 5 one cell and says nothing."""
    (tmp_path / "a.csv").write_text('text,label\none,x\n"two,y\nthree,x\n"four",y\nfive,x\n')
    outcome = read(Source(path=tmp_path / "a.csv"))
    assert [row["text"] for row in rows_of(outcome)] == ["one", "five"]
    [left] = outcome.left
    assert left.origin == "a.csv:3"
    assert "lines 3 to 5" in left.reason


def test_a_quote_that_never_closes_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\none,x\n"two,y\nthree,x\n')
    outcome = read(Source(path=tmp_path / "a.csv"))
    assert len(outcome.rows) == 1
    assert "lines 3 to 4" in outcome.left[0].reason


def test_half_a_character_is_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "ok \\ud83d\\ude00", "label": "x"}\n{"text": "half \\ud83d", "label": "x"}\n'
    )
    outcome = read(Source(path=tmp_path / "a.jsonl"))
    assert list(outcome.rows["text"]) == ["ok 😀"]
    assert outcome.left[0].reason == "not valid Unicode"
    json.dumps(dict(outcome.left[0].row), ensure_ascii=False).encode()


def test_an_array_in_one_long_line_is_no_long_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 50)
    (tmp_path / "a.json").write_text("\ufeff " + json.dumps(ROWS * 9))
    assert len(read(Source(path=tmp_path / "a.json")).rows) == 18


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_line_that_is_too_long_is_passed_over(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    rows = [
        {"text": "one", "label": "x"},
        {"text": "z" * 5000, "label": "x"},
        {"text": "two", "label": "y"},
    ]
    if ending == "csv":
        content = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"a.{ending}").write_text(content)
    outcome = read(Source(path=tmp_path / f"a.{ending}"))
    assert [row["text"] for row in rows_of(outcome)] == ["one", "two"]
    places = [2, 4] if ending == "csv" else [1, 3]
    assert list(outcome.rows[ORIGIN]) == [f"a.{ending}:{place}" for place in places]
    [left] = outcome.left
    assert "more than 1,000 are not read" in left.reason
    assert len(left.row[""]) < 300


def test_a_header_that_is_too_long_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    (tmp_path / "a.csv").write_text("text,label," + "z" * 200 + "\none,x,y\n")
    with pytest.raises(RecipeError, match="its header is a line of 212 bytes"):
        read(Source(path=tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv has no rows"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
        ("a.csv", b"text,text\none,x\n", "two columns called 'text'"),
        ("a.csv", b"text,intent\none,x\n", "no column 'label'; its columns are text, intent"),
        ("a.jsonl", b'{"text": "one"}\n', "no column 'label'; its columns are text"),
        ("a.csv", "text,label\n".encode("utf-16"), "a.csv is UTF-16; save it as UTF-8"),
        ("a.csv", "téxt,label\n".encode("latin-1"), "its header is not UTF-8; name its `encoding`"),
        ("a.json", b'[{"text": ', "its array is broken"),
        ("a.parquet", b"PAR1", "cannot read a.parquet as parquet"),
    ],
)
def test_a_source_that_is_no_table_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read(Source(path=tmp_path / name))


def test_a_source_that_is_not_there_is_refused(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"bucket/none\.csv does not exist"):
        read(Source(url="memory://bucket/none.csv"))
    with pytest.raises(RecipeError, match=r"cannot open .*rows\.csv"):
        read(Source(url="nosuchstore://bucket/rows.csv"))


def test_a_hub_data_set_without_a_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="without a network give a file") as refusal:
        read(Source(hub="org/messages", revision="abc123"))
    assert "org/messages@abc123" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_gigabyte_in_one_line_fits_into_little_memory(tmp_path: Path) -> None:
    """The reader in a process of its own, with 400 MB of address space beyond what Python and its libraries take."""
    import subprocess
    import sys

    file = tmp_path / "long.csv"
    with file.open("wb") as stream:
        stream.write(b"text,label\none,x\n")
        for _ in range(1024):
            stream.write(b"z" * 1024 * 1024)
        stream.write(b",x\ntwo,y\n")
    code = f"""
import resource
from pathlib import Path
from training.data.collect import collect
from training.recipe.source import Source
with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20,) * 2)
outcome = collect([Source(path=Path({str(file)!r}))], ["text", "label"])
print(list(outcome.rows["text"]), outcome.left[0].reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("['one', 'two'] a line of 1,073,741,82")
