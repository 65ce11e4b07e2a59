"""Files are written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from serve.files import write_atomically


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    write_atomically(file, "äöü")
    assert file.read_bytes() == "äöü".encode()
    write_atomically(file, b"\x00", mode=0o444)
    assert file.read_bytes() == b"\x00"
    assert file.stat().st_mode & 0o777 == 0o444
    assert os.listdir(file.parent) == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.json"
    write_atomically(file, "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]
