"""Reads safetensors files with numpy alone: shapes first, values piece by piece, also in bfloat16."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from serve.errors import UserError

_PIECE = 1 << 20
"""Values that are looked at together."""

_EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 0x1F << 10),
}
"""Each float type's unsigned integer of the same width, and its exponent bits: all set in NaN and
infinity alone."""
_WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a value."""


class TensorError(UserError, ValueError):
    """A safetensors file that cannot be used. The message is for the person who made it."""


@dataclass(frozen=True)
class Tensor:
    name: str
    """As the file has it."""
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    end: int
    """Offset behind its last byte."""

    @property
    def values(self) -> int:
        """How many it holds."""
        return int(np.prod(self.shape, dtype=np.int64))


class TensorFile:
    """The tensors of one safetensors file. Raises TensorError if the file is unsound."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy"):
                pass  # the library checks the header and that the tensors fill the file exactly
        except (SafetensorError, OSError) as error:
            raise TensorError(f"{path.name} is not a sound safetensors file: {error}") from error
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.tensors = {
            name: Tensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                *(8 + size + offset for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }

    def renamed(self, name_of: Callable[[str], str]) -> Self:
        """Returns the same file with other names for its tensors. Raises TensorError if two would have the same
        name."""
        view = copy(self)
        view.tensors = {}
        for name, tensor in self.tensors.items():
            new = name_of(name)
            if new in view.tensors:
                raise TensorError(
                    f"{self.path.name} holds the tensor {new!r} twice, as {view.tensors[new].name!r} and as {name!r}."
                )
            view.tensors[new] = tensor
        return view

    def write(self, target: Path, tensors: Mapping[str, Tensor]) -> None:
        """Writes a new file with some of the tensors, each under the given name."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, tensor in tensors.items():
            size = tensor.end - tensor.start
            offsets = [at, at + size]
            header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with self.path.open("rb") as source, target.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors.values():
                source.seek(tensor.start)
                left = tensor.end - tensor.start
                while left:
                    piece = source.read(min(left, _PIECE))
                    file.write(piece)
                    left -= len(piece)

    def has_values_of(self, name: str, other: "TensorFile", others_name: str) -> bool:
        """Returns whether a float tensor holds the values of another file's tensor of the same shape, possibly rounded
        to its own type."""
        own, given = self.tensors[name], other.tensors[others_name]
        if own.dtype not in _WIDTHS or given.dtype not in _WIDTHS or own.shape != given.shape:
            return False
        pairs = zip(self._pieces(own), other._pieces(given), strict=True)
        return all(np.array_equal(a, _rounded(b, own.dtype)) for a, b in pairs)

    def _pieces(self, tensor: Tensor) -> Iterator[NDArray[np.float64]]:
        """Yields the values in order, a piece at a time."""
        kind, _ = _EXPONENTS[tensor.dtype]
        shape = (tensor.values,)
        raw = np.memmap(self.path, dtype=kind, mode="r", offset=tensor.start, shape=shape)
        for first in range(0, tensor.values, _PIECE):
            yield _as_floats(raw[first : first + _PIECE], tensor.dtype)

    def floats(self, name: str) -> NDArray[np.float32]:
        """Returns the values of a float tensor of any width. Raises TensorError if it is of another type."""
        tensor = self.tensors[name]
        if tensor.dtype not in _EXPONENTS:
            raise TensorError(_no_floats(name, tensor))
        kind, _ = _EXPONENTS[tensor.dtype]
        bits = np.fromfile(self.path, dtype=kind, count=tensor.values, offset=tensor.start)
        return _as_floats(bits, tensor.dtype).astype(np.float32).reshape(tensor.shape)

    def check_finite(self, name: str) -> None:
        """Raises TensorError if the tensor is not of floats, or holds a NaN or an infinity."""
        tensor = self.tensors[name]
        if tensor.dtype not in _EXPONENTS:
            raise TensorError(_no_floats(name, tensor))
        kind, exponent = _EXPONENTS[tensor.dtype]
        count = tensor.values
        if count == 0:
            raise TensorError(f"The tensor {name!r} is empty: its shape is {list(tensor.shape)}.")
        values = np.memmap(self.path, dtype=kind, mode="r", offset=tensor.start, shape=(count,))
        mask = values.dtype.type(exponent)
        for first in range(0, count, _PIECE):
            if np.any((values[first : first + _PIECE] & mask) == mask):
                raise TensorError(
                    f"The tensor {name!r} holds NaN or infinite values; train the adapter again."
                )


def _as_floats(raw: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Returns the values that the bits of a piece stand for."""
    floats = (
        (raw.astype("<u4") << 16).view("<f4")
        if dtype == "BF16"
        else raw.view(f"<f{_WIDTHS[dtype]}")
    )
    return np.asarray(floats, np.float64)


def _rounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Returns the values rounded to a float type, to the nearest, half to even."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4")
        kept = bits + 0x7FFF + ((bits >> 16) & 1) & 0xFFFF0000
        return np.asarray(kept.astype("<u4").view("<f4"), np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(f"<f{_WIDTHS[dtype]}"), np.float64)


def _no_floats(name: str, tensor: Tensor) -> str:
    return (
        f"The tensor {name!r} is of type {tensor.dtype}; expected one of {', '.join(_EXPONENTS)}."
    )
