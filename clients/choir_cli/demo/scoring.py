"""Accuracy and latency of each member and each fusion method, measured over HTTP."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from choir_client import Choir

if TYPE_CHECKING:
    from training.leaderboard.board import Leaderboard

LATENCY_REQUESTS = 20


@dataclass(frozen=True)
class Score:
    name: str
    accuracy: float
    by_team: Mapping[str, float]
    """Team -> the accuracy on its messages."""
    latency: float
    """Median seconds of a request with one text."""
    passes: int
    """Number of members that run for one answer."""


def scores(
    choir: Choir,
    ensemble: str,
    members: Sequence[str],
    methods: Sequence[str],
    rows: Sequence[Mapping[str, str]],
) -> Iterator[Score]:
    """Yield one score for each member alone, then one for each fusion method. Each of the `rows` has a text, its
    intent and its team."""
    for member in members:
        yield _score(choir, member, f"{ensemble}/{member}", None, 1, rows)
    for method in methods:
        yield _score(choir, method, ensemble, method, len(members), rows)


def with_times(board: "Leaderboard", found: Sequence[Score]) -> "Leaderboard":
    """Return the leaderboard with the median times of requests over HTTP. The best member alone takes as long as the
    members do, in the median."""
    times = {score.name: 1000 * score.latency for score in found}
    times["single"] = statistics.median(1000 * s.latency for s in found if s.passes == 1)
    rungs = [rung.model_copy(update={"milliseconds": times.get(rung.name)}) for rung in board.rungs]
    return board.model_copy(update={"rungs": rungs})


def _score(
    choir: Choir,
    name: str,
    model: str,
    method: str | None,
    passes: int,
    rows: Sequence[Mapping[str, str]],
) -> Score:
    fusion = {"method": method} if method else None
    texts = [row["text"] for row in rows]
    answers = choir.predict(model, texts, fusion=fusion).labels
    right: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        right.setdefault(row["team"], []).append(answer == row["intent"])
    seconds = []
    for text in texts[:LATENCY_REQUESTS]:
        started = time.perf_counter()
        choir.predict(model, text, fusion=fusion)
        seconds.append(time.perf_counter() - started)
    return Score(
        name,
        sum(map(sum, right.values())) / len(texts),
        {team: sum(own) / len(own) for team, own in right.items()},
        statistics.median(seconds),
        passes,
    )
