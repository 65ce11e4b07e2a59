"""Accuracy and latency of each member and each fusion method, measured over HTTP."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from choir_client import Choir

LATENCY_REQUESTS = 20


@dataclass(frozen=True)
class Score:
    name: str
    accuracy: float
    latency: float
    """Median seconds of a request with one text."""
    passes: int
    """Number of members that run for one answer."""


def scores(
    choir: Choir,
    ensemble: str,
    members: Sequence[str],
    methods: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[str],
) -> Iterator[Score]:
    """Yield one score for each member alone, then one for each fusion method."""
    for member in members:
        yield _score(choir, member, f"{ensemble}/{member}", None, 1, texts, labels)
    for method in methods:
        yield _score(choir, method, ensemble, method, len(members), texts, labels)


def _score(
    choir: Choir,
    name: str,
    model: str,
    method: str | None,
    passes: int,
    texts: Sequence[str],
    labels: Sequence[str],
) -> Score:
    fusion = {"method": method} if method else None
    answers = choir.predict(model, texts, fusion=fusion).labels
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    seconds = []
    for text in texts[:LATENCY_REQUESTS]:
        started = time.perf_counter()
        choir.predict(model, text, fusion=fusion)
        seconds.append(time.perf_counter() - started)
    return Score(name, right / len(texts), statistics.median(seconds), passes)
