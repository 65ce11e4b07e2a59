"""Safetensors files read with numpy alone: shapes first, values a piece at a time, bfloat16 too."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


class TensorError(UserError, ValueError):
    """A safetensors file that cannot be used, in words for whoever made it."""


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""


class TensorFile:
    """The tensors of one safetensors file. Raises TensorError unless the file is a sound one."""

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
            name: Tensor(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in header.items()
        }

    def check_finite(self, name: str) -> None:
        """Raises TensorError if the tensor is not of floats, or holds a NaN or an infinity."""
        tensor = self.tensors[name]
        if tensor.dtype not in _EXPONENTS:
            raise TensorError(
                f"The tensor {name!r} is of type {tensor.dtype}; expected one of "
                f"{', '.join(_EXPONENTS)}."
            )
        kind, exponent = _EXPONENTS[tensor.dtype]
        count = int(np.prod(tensor.shape, dtype=np.int64))
        if count == 0:
            raise TensorError(f"The tensor {name!r} is empty: its shape is {list(tensor.shape)}.")
        values = np.memmap(self.path, dtype=kind, mode="r", offset=tensor.start, shape=(count,))
        mask = values.dtype.type(exponent)
        for first in range(0, count, _PIECE):
            if np.any((values[first : first + _PIECE] & mask) == mask):
                raise TensorError(
                    f"The tensor {name!r} holds NaN or infinite values; train the adapter again."
                )
