"""Whether replicas answer the probe alike: what is loaded on all of them is one adapter, and it does something.

Replicas of one kind compute the same, but not to the bit: how a batch is cut decides how values are rounded, and a
model carries that through all of its layers. In bfloat16 about 1 % of the last hidden state comes of it. Each of the
values that are compared has its part of that noise, large ones and small ones alike, so what is compared with the
noise is the distance of all of them together.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from serve.engine.interface import Probe

_ROUNDINGS = 5
"""How far healthy replicas lie apart at most, in roundings (`Probe.epsilon`), as a share of the answer's spread: three
to four times what was seen."""
_LEAST = 0.01
"""The same for types that round finer, whose kernels may compute in a coarser one (TF32)."""


def doubtful_probes(probes: Mapping[str, Iterable[Probe]]) -> str | None:
    """Why a version should not go live for what its adapters answered to the probe, by engine."""
    first: dict[str, tuple[str, Probe]] = {}
    for engine, answers in probes.items():
        for probe in answers:
            if not probe.change > 0:
                return (
                    f"the adapter {probe.digest} does not change what the base answers "
                    f"(difference {probe.change} on {engine}): it has no effect"
                )
            other, reference = first.setdefault(probe.digest, (engine, probe))
            if not agree(reference, probe):
                return (
                    f"{other} and {engine} answer the probe differently with the adapter {probe.digest}, by more than "
                    "rounding explains"
                )
    return None


def agree(one: Probe, other: Probe) -> bool:
    """Whether two replicas' answers differ by no more than rounding.

    Their distance (root mean square of the differences) may be a share of how far the values of an answer spread, and
    half a rounding of the values themselves, since logits are rounded too."""
    a, b = np.array(one.outputs), np.array(other.outputs)
    if a.shape != b.shape or not np.isfinite([*a, *b]).all():
        return False
    epsilon = max(one.epsilon, other.epsilon)
    share = max(_LEAST, _ROUNDINGS * epsilon)
    allowed = share * max(a.std(), b.std()) + epsilon / 2 * max(_size(a), _size(b))
    return bool(_size(a - b) <= allowed)


def _size(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
