"""Pickled weights are read in a process of its own, which runs nothing and takes no more than it may."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.conversion.errors import ConversionError
from training.conversion.weights import unpickled


class Hostile:
    """Writes a file when it is unpickled by pickle itself."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_tensors_come_out_as_they_went_in(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    given = {"a": shared, "b": shared.T, "c": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(given, tmp_path / "x.bin")
    unpickled(tmp_path / "x.bin", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    file, mark = tmp_path / "x.bin", tmp_path / "mark"
    for content in (Hostile(mark), {"a": Hostile(mark)}):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(ConversionError, match=r"x\.bin is not read: it holds more than"):
            unpickled(file, tmp_path / "out")
        torch.save(content, file)
        with pytest.raises(ConversionError, match="it holds more than tensors"):
            unpickled(file, tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [([torch.zeros(1)], "no tensors by name"), ({"a": 3}, "'a' in it is no tensor")],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ConversionError, match=reason):
        unpickled(tmp_path / "x.bin", tmp_path / "out")


def test_a_small_file_that_names_a_huge_tensor_takes_no_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**11)}, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").stat().st_size < 10_000
    with pytest.raises(ConversionError, match=r"more memory|too much memory"):
        unpickled(tmp_path / "x.bin", tmp_path / "out")


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.bin")
    with pytest.raises(ConversionError, match=r"could not be read within 0\.01 seconds"):
        unpickled(tmp_path / "x.bin", tmp_path / "out", seconds=0.01)
