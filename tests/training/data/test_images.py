"""Cells that hold an image: paths, data URLs, bytes and images of `datasets` become the data URL that is served."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn

from serve.images.decode import decode
from serve.images.limits import ImageError, ImageLimits
from tests.serve.images.hostile import SCRIPT, picture, saved, url_of
from training.data.collect import collect
from training.data.images import image_url, is_image, marked, parted
from training.recipe.source import Source

PICTURE = picture(24, 16)


def pixels(url: str) -> bytes:
    return decode(url, ImageLimits()).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_every_form_becomes_the_same_data_url(tmp_path: Path, kind: str) -> None:
    data = saved(PICTURE, kind)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.bin").write_bytes(data)
    cells = ["a/one.bin", data, {"bytes": data, "path": None}, {"bytes": None, "path": "a/one.bin"}]
    urls = {image_url(cell, tmp_path) for cell in cells}
    assert len(urls) == 1
    (url,) = urls
    assert is_image(url)
    assert image_url(url, None) == url
    assert base64.b64decode(url.partition(",")[2]) == data


@pytest.mark.parametrize("spelled", ["data:image/png;base64,", " DATA:image/PNG;Base64,\r\n"])
def test_a_url_of_many_lines_is_an_image_without_a_text(spelled: str) -> None:
    """As `base64 FILE` and Python's `encodebytes` break it."""
    data = saved(PICTURE)
    url = image_url(spelled + base64.encodebytes(data).decode(), None)
    assert parted(url) == (url_of(PICTURE), "")
    assert parted(f"{url}\nwhat is\nit?") == (url_of(PICTURE), "what is\nit?")


def test_a_missing_cell_stays_missing() -> None:
    assert image_url(None, None) == image_url("", None) == ""


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("nowhere.png", "'nowhere.png' cannot be opened: No such file"),
        (SCRIPT, "no PNG, JPEG or WebP"),
        (saved(PICTURE)[:-20], "cut off"),
        ("data:image/svg+xml;base64,aGk=", "not served"),
        ("data:text/html;base64,PGI+", "'text/html', which is not served"),
        ({"bytes": None, "path": None}, "cannot be opened"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path, cell: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image_url(cell, tmp_path)


def test_paths_are_followed_from_files_of_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(saved(PICTURE))
    with pytest.raises(ImageError, match="only those in a file of this machine"):
        image_url(str(tmp_path / "one.png"), None)


def test_rows_with_unreadable_images_leave_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(saved(PICTURE))
    (tmp_path / "bad.png").write_bytes(saved(PICTURE)[:100])
    rows = [
        {"image": "good.png", "label": "a"},
        {"image": "bad.png", "label": "b"},
        {"image": url_of(PICTURE), "label": "c"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(path=tmp_path / "rows.jsonl")
    found = collect([source], ["image", "label"], images=["image"])
    assert list(found.rows["label"]) == ["a", "c"]
    assert [pixels(url) for url in found.rows["image"]] == [PICTURE.tobytes()] * 2
    (left,) = found.left
    assert (left.step, left.origin) == ("unreadable", "rows.jsonl:2")
    assert "cut off" in left.reason


def test_parquet_of_datasets_is_read(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {"image": [PICTURE], "label": ["a"]},
        features=Features({"image": ImageColumn(), "label": Value("string")}),
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    found = collect([Source(path=tmp_path / "rows.parquet")], ["image"], images=["image"])
    assert [pixels(url) for url in found.rows["image"]] == [PICTURE.tobytes()]


def test_images_of_the_hub_are_read_as_their_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo stays as large as its file. One that is broken, or too large, leaves with its reason."""
    photo, cmyk = saved(picture(2000, 1500), "JPEG"), saved(picture(mode="CMYK"), "JPEG")
    (tmp_path / "apart.jpg").write_bytes(photo)
    files: list[dict[str, Any] | None] = [
        {"bytes": photo, "path": "one.jpg"},
        {"bytes": cmyk, "path": "two.jpg"},
        {"bytes": photo[:-100], "path": "three.jpg"},
        {"bytes": b"no image", "path": "four.jpg"},
        {"bytes": None, "path": str(tmp_path / "apart.jpg")},
        {"bytes": None, "path": str(tmp_path / "nowhere.jpg")},
        None,
    ]
    columns = Features({"image": ImageColumn(decode=False), "label": Value("string")})
    rows = Dataset.from_dict({"image": files, "label": list("abcdefg")}, features=columns)
    rows = rows.cast_column("image", ImageColumn())
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    found = collect(
        [Source(hub="org/photos", revision="main")], ["image", "label"], images=["image"]
    )
    assert list(found.rows["label"]) == ["a", "b", "e", "g"]
    held = [base64.b64decode(url.partition(",")[2]) for url in found.rows["image"]]
    assert held == [photo, cmyk, photo, b""], "the last row's cell is missing"
    reasons = [left.reason for left in found.left]
    words = ["cut off", "no PNG, JPEG or WebP", "nowhere.jpg' is a path"]
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("kind", "size"), [("PNG", (8, 8)), ("JPEG", (40, 24)), ("WEBP", (40, 24))]
)
def test_a_marked_image_is_another_one_by_each_number(kind: str, size: tuple[int, int]) -> None:
    url = url_of(picture(*size), kind)
    marks = [marked(url, number) for number in range(0, 4096, 5)]
    assert {each.partition(";")[0] for each in marks} == {url.partition(";")[0]}
    assert len({pixels(each) for each in marks}) == len(marks)
    assert {decode(each, ImageLimits()).size for each in marks} == {size}


def test_a_mark_leaves_the_rest_of_an_image() -> None:
    before, after = (
        np.asarray(decode(url, ImageLimits()))
        for url in (url_of(PICTURE), marked(url_of(PICTURE), 7))
    )
    assert (before[:, 16:] == after[:, 16:]).all()
    assert (after[:16, :16] == [119, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_marked_image_is_no_larger_than_a_server_takes(kind: str) -> None:
    """A photo stays one, and what would be too large as it is stored anew becomes smaller."""
    photo = picture(1600, 1600) if kind == "JPEG" else picture(2000, 2000).quantize(64)
    url = url_of(photo, kind)
    assert len(url) < 8_000_000
    after = marked(url, 1)
    side = decode(after, ImageLimits()).size[0]
    assert (len(after) <= len(url), side) == ((True, 1600) if kind == "JPEG" else (True, 1000))
