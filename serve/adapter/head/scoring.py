"""Applies the head of an adapter to pooled vectors, in evaluation and in serving alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from serve.adapter.folder import HEAD, AdapterError, read_config
from serve.adapter.head.layers import HiddenLayer
from serve.adapter.head.peft_head import find_peft_head
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseShapes, Pooling
from serve.tensors import TensorFile


@dataclass(frozen=True)
class Head:
    """A linear layer over a text's pooled vector, possibly behind a hidden layer."""

    weight: NDArray[np.float32]
    """[C, H], or [C, 4 x H] for pairs. H is the width of the hidden layer, or else of the pooled vector."""
    bias: NDArray[np.float32]
    """[C]"""
    normalize: bool
    """Whether each text's vector is L2-normalised first."""
    towers: bool
    """Whether it reads a pair of texts: two vectors u and v as [u, v, |u-v|, u*v] (Reimers and Gurevych 2019)."""
    pooling: Pooling | None = None
    """Which vector of a text it reads; None: the mean over the tokens, or under a causal model the last one's."""
    hidden: HiddenLayer | None = None
    """The layer before it, which reads the pooled vector of each text."""
    joins: bool = False
    """Whether it also reads a pair as one text, which the tokenizer joins: a sequence classifier does, and whether it
    was trained on texts or on pairs is written nowhere."""

    @classmethod
    def read(cls, adapter: Path, base: BaseShapes | None = None) -> "Head":
        """Reads the head of a checked adapter: `head.safetensors`, or else the classifier that PEFT saved, whose frozen
        parts are in the `base`. Raises AdapterError if a part is missing."""
        if not (adapter / HEAD).is_file():
            return cls._read_classifier(adapter, base)
        file = TensorFile(adapter / HEAD)
        said = file.metadata
        hidden = None
        if "hidden_weight" in file.tensors:
            weight, bias = file.floats("hidden_weight"), file.floats("hidden_bias")
            hidden = HiddenLayer(weight, bias, said["activation"])
        return cls(
            file.floats("weight"),
            file.floats("bias"),
            said.get("normalize") == "true",
            said.get("pair") == "towers",
            cast(Pooling | None, said.get("pooling")),
            hidden,
        )

    @classmethod
    def _read_classifier(cls, adapter: Path, base: BaseShapes | None) -> "Head":
        found = find_peft_head(adapter_tensors(adapter), read_config(adapter), base)
        if found is None:
            raise AdapterError(f"It has no head: {HEAD} is missing.")
        weight, bias = found.output()
        pooling = found.classifier.pooling
        return cls(weight, bias, False, False, pooling, found.hidden(), joins=True)

    def scores(
        self, pooled: NDArray[np.float32], pair: NDArray[np.float32] | None = None
    ) -> NDArray[np.float64]:
        """Returns scores [N, C] from the vectors of N texts [N, width]; for pairs, also those of the second texts."""
        features = self._features(pooled)
        if pair is not None:
            second = self._features(pair)
            features = np.concatenate(
                [features, second, np.abs(features - second), features * second], axis=-1
            )
        return (features @ self.weight.T + self.bias).astype(np.float64)

    def _features(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = pooled if self.hidden is None else self.hidden(pooled)
        if not self.normalize:
            return vectors
        lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        unit: NDArray[np.float32] = vectors / lengths
        return unit
