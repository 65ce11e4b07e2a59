"""Ensembles of a few members, and probabilities for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member

LABELS = ("delta", "alpha", "charlie", "bravo")


@pytest.fixture
def make_ensemble() -> Callable[..., Ensemble]:
    """`make_ensemble(weights=(0.5, 0.5), labels=..., **fusion)`: members m0, m1, ... with one
    adapter each."""

    def make(
        weights: tuple[float | None, ...] = (None, None, None),
        labels: tuple[str, ...] | None = LABELS,
        task: str = "classification",
        changed: tuple[int, ...] = (),
        **fusion: Any,
    ) -> Ensemble:
        """`changed`: members that have a new adapter."""
        members = []
        for index, weight in enumerate(weights):
            digest = f"sha256:{index + 1000 * (index in changed):064x}"
            ref = AdapterRef(adapter=f"a{index}", digest=digest)
            members.append(Member(name=f"m{index}", weight=weight, adapters=[ref]))
        return Ensemble(
            format=1,
            name="intents",
            version=1,
            task=task,
            members=members,
            fusion=FusionSpec(**({"method": "average"} | fusion)),
            labels=None if labels is None else list(labels),
        )

    return make


@pytest.fixture
def draw() -> Callable[..., np.ndarray]:
    """`draw(M, N, C, seed=0)` -> random probabilities."""

    def make(members: int, rows: int, labels: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.dirichlet(np.ones(labels), size=(members, rows))

    return make


@pytest.fixture
def noisy() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`noisy(M, N, C, skills=...)` -> members [M, N, C] that know the answer with their skill, and
    targets [N]."""

    def make(
        members: int, rows: int, labels: int, skills: tuple[float, ...] | None = None, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        targets = np.concatenate([np.arange(labels), rng.integers(labels, size=rows - labels)])
        scores = rng.normal(size=(members, rows, labels))
        for member, skill in enumerate(skills or (2.0,) * members):
            scores[member, np.arange(rows), targets] += skill
        powers = np.exp(scores)
        return powers / powers.sum(axis=-1, keepdims=True), targets

    return make
