"""Applies the head of an adapter to pooled vectors, in evaluation and in serving alike."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.adapter.folder import HEAD
from serve.adapter.head.peft_score import BIAS, WEIGHT
from serve.adapter.wrappers import adapter_tensors
from serve.tensors import TensorFile


@dataclass(frozen=True)
class Head:
    """A linear layer over a text's pooled vector."""

    weight: NDArray[np.float32]
    """[C, hidden], or [C, 4 x hidden] for pairs."""
    bias: NDArray[np.float32]
    """[C]"""
    normalize: bool
    """Whether each pooled vector is L2-normalised first."""
    towers: bool
    """Whether it reads a pair of texts: two vectors u and v as [u, v, |u-v|, u*v] (Reimers and Gurevych 2019)."""

    @classmethod
    def read(cls, adapter: Path) -> "Head":
        """Reads the head of a checked adapter: `head.safetensors`, or else what PEFT stored as `score`."""
        if not (adapter / HEAD).is_file():
            return cls._read_score(adapter)
        file = TensorFile(adapter / HEAD)
        return cls(
            file.floats("weight"),
            file.floats("bias"),
            file.metadata.get("normalize") == "true",
            file.metadata.get("pair") == "towers",
        )

    @classmethod
    def _read_score(cls, adapter: Path) -> "Head":
        file = adapter_tensors(adapter)
        weight = file.floats(WEIGHT)
        bias = file.floats(BIAS) if BIAS in file.tensors else np.zeros(len(weight), np.float32)
        return cls(weight, bias, normalize=False, towers=False)

    def scores(
        self, pooled: NDArray[np.float32], pair: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Returns scores [N, C] from the vectors of N texts [N, hidden]; for pairs, also those of the second texts."""
        features = self._normalised(pooled)
        if pair is not None:
            second = self._normalised(pair)
            features = np.concatenate(
                [features, second, np.abs(features - second), features * second], axis=-1
            )
        return (features @ self.weight.T + self.bias).astype(np.float64)

    def _normalised(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return pooled
        lengths = np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        unit: NDArray[np.float32] = pooled / lengths
        return unit
