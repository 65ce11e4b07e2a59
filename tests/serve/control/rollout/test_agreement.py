"""Which probes count as answers of the same adapter, simulated with a model's last layer."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from serve.control.rollout.agreement import agree, doubtful_probes
from serve.engine.interface import Probe

BFLOAT16, FLOAT16, FLOAT32 = 2.0**-7, 2.0**-10, 2.0**-23
HIDDEN, VOCABULARY, WATCHED = 128, 1024, 64
PAIRS = 100

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def last_layer() -> Floats:
    return np.random.default_rng(0).normal(size=(VOCABULARY, HIDDEN))


def rounded(values: Floats, epsilon: float) -> Floats:
    """The values, rounded as a type with this epsilon does."""
    _, exponents = np.frexp(values)
    step = np.ldexp(epsilon, exponents - 1)
    return np.round(values / step) * step


def probe_of(hidden: Floats, layer: Floats, epsilon: float) -> Probe:
    """An engine's probe for a hidden state: log-probabilities of tokens from the whole vocabulary."""
    logits = rounded(layer @ hidden, epsilon)
    logs = logits - np.logaddexp.reduce(logits)
    return Probe("sha256:x", tuple(logs[:: VOCABULARY // WATCHED].tolist()), 1.0, epsilon)


def noisy(rng: np.random.Generator, hidden: Floats, noise: float) -> Floats:
    return hidden * (1 + noise * rng.normal(size=hidden.shape))


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0], ids=["flat", "usual", "sharp"])
@pytest.mark.parametrize(
    ("epsilon", "noise"), [(BFLOAT16, 0.01), (FLOAT16, 0.00125), (FLOAT32, 1e-4)]
)
def test_healthy_replicas_agree_and_another_adapter_never_does(
    last_layer: Floats, epsilon: float, noise: float, scale: float
) -> None:
    rng = np.random.default_rng(1)
    agreed, mistaken = 0, 0
    for _ in range(PAIRS):
        hidden = rng.normal(size=HIDDEN) * scale
        one, other = (probe_of(noisy(rng, hidden, noise), last_layer, epsilon) for _ in range(2))
        agreed += agree(one, other)
        adapted = hidden + 0.2 * scale * rng.normal(size=HIDDEN)
        mistaken += agree(one, probe_of(adapted, last_layer, epsilon))
    assert (agreed, mistaken) == (PAIRS, 0)


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_pooled_vectors_are_compared_by_their_own_size(scale: float) -> None:
    """A normalised vector of hundreds of values has small values, which count as much as large ones."""
    rng = np.random.default_rng(2)

    def probe(vector: Floats) -> Probe:
        return Probe("sha256:x", tuple(vector.tolist()), 1.0, BFLOAT16)

    for _ in range(PAIRS):
        vector = rng.normal(size=WATCHED) * scale
        one, other = (probe(noisy(rng, vector, 0.01)) for _ in range(2))
        assert agree(one, other)
        assert not agree(one, probe(vector + 0.2 * scale * rng.normal(size=WATCHED)))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values[:-1],
        lambda values: (*values[:-1], float("nan")),
        lambda values: (*values[:-1], float("-inf")),
    ],
    ids=["fewer", "nan", "infinite"],
)
def test_answers_that_cannot_be_compared_disagree(
    last_layer: Floats, change: Callable[[tuple[float, ...]], tuple[float, ...]]
) -> None:
    sound = probe_of(np.ones(HIDDEN), last_layer, BFLOAT16)
    broken = Probe(sound.digest, change(sound.outputs), 1.0, BFLOAT16)
    assert not agree(sound, broken)
    assert not agree(broken, sound)
    reason = doubtful_probes({"engine/0": [sound], "engine/1": [broken]})
    assert reason is not None
    assert "engine/0 and engine/1 answer the probe differently" in reason
