"""Checks by probes that all engines have loaded the same adapter, and that the adapter has an effect.

Engines compute the same values, but not bit by bit: rounding depends on how requests are batched, and passes through
all layers of the model. In bfloat16, this noise is about 1 % of the last hidden state. It affects large and small
values alike, so the distance of all values together is compared with it.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from serve.engine.interface import Probe

_ROUNDINGS = 5
"""The largest distance of healthy engines, in roundings (`Probe.epsilon`), as a share of the answer's standard
deviation: three to four times the largest one seen."""
_LEAST = 0.01
"""The least share that is allowed: kernels for finer types may compute in a coarser one (TF32)."""


def doubtful_probes(probes: Mapping[str, Iterable[Probe]]) -> str | None:
    """Why a version should not go live, judging by the probes; None if it may. `probes`: engine -> its answers."""
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
    """Whether the answers of two engines differ by rounding alone.

    Their distance (root mean square of the differences) may be a share of the standard deviation of the values, plus
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
