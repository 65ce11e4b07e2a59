"""Stackers against their limits: 2 ms a row and 1 MB."""

from functools import partial

import numpy as np
import pytest

from serve.fusion.fuse import Fusion
from serve.fusion.stack import MAX_BYTES, BoostingStack, LinearStack
from serve.manifest import Ensemble, FusionSpec, Member
from tests.bench.measuring import interleaved, median_ms, report

pytestmark = pytest.mark.bench

ROWS = 1000
MAX_MS = 2


def one_row(fusion: Fusion, said: np.ndarray, row: int) -> object:
    return fusion(said[:, row : row + 1], method="stack")


def test_time_and_size_of_stackers() -> None:
    lines = []
    for members, labels in ((4, 77), (16, 77), (3, 48)):
        rng = np.random.default_rng(0)
        truth = rng.integers(labels, size=ROWS)
        scores = rng.normal(size=(members, ROWS, labels))
        scores[:, np.arange(ROWS), truth] += 3
        said = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        ensemble = Ensemble(
            format=1,
            name="x",
            version=1,
            task="classification",
            members=[Member(name=f"m{number}", adapters=[]) for number in range(members)],
            fusion=FusionSpec(method="average"),
            labels=[f"label-{number}" for number in range(labels)],
        )
        stacks = {
            "regression": LinearStack.fit(said, truth, ensemble),
            "boosted trees": BoostingStack.fit(said, truth, ensemble),
        }
        fusions = {name: Fusion(ensemble, stack) for name, stack in stacks.items()}
        calls = {name: partial(one_row, fusion, said) for name, fusion in fusions.items()}
        for name, seconds in interleaved(calls, rounds=200).items():
            size = len(stacks[name].content().encode())
            taken = median_ms(seconds)
            lines.append(
                f"{members:2} members, {labels} labels, {name:13} {taken:5.2f} ms a row, {size:7,} bytes"
            )
            assert size <= MAX_BYTES
            assert taken <= MAX_MS
    report(f"Stackers, one row at a time (limits: {MAX_MS} ms, {MAX_BYTES:,} bytes)", *lines)
