"""What may stand between a text's pooled vector and a head's linear layer: a hidden layer, as classifiers have it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def _gelu(values: Floats) -> Floats:
    from scipy.special import erf  # slow to load, and bundles are read without it

    return np.asarray(values * 0.5 * (1.0 + erf(values / np.sqrt(2.0))), np.float32)


def _gelu_by_tanh(values: Floats) -> Floats:
    inner = np.sqrt(2.0 / np.pi) * (values + 0.044715 * values**3)
    return np.asarray(0.5 * values * (1.0 + np.tanh(inner)), np.float32)


ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "identity": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "silu": lambda values: np.asarray(values * 0.5 * (1.0 + np.tanh(0.5 * values)), np.float32),
    "tanh": np.tanh,
}
"""By the names that transformers has for them."""


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation (Ba et al. 2016)."""

    weight: Floats
    """[H]"""
    bias: Floats | None
    """[H]"""
    epsilon: float

    def __call__(self, values: Floats) -> Floats:
        """Returns the normalised vectors [N, H]."""
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self.epsilon)
        scaled = centred / spread * self.weight
        return np.asarray(scaled if self.bias is None else scaled + self.bias, np.float32)


@dataclass(frozen=True)
class HiddenLayer:
    """A linear layer with an activation, and possibly a layer normalisation behind it."""

    weight: Floats
    """[H, width of the pooled vector]"""
    bias: Floats | None
    """[H]"""
    activation: str
    norm: LayerNorm | None = None

    def __call__(self, pooled: Floats) -> Floats:
        """Returns the layer's vectors [N, H] from pooled ones [N, width]."""
        values = pooled @ self.weight.T
        if self.bias is not None:
            values = values + self.bias
        values = ACTIVATIONS[self.activation](values)
        return values if self.norm is None else self.norm(values)
