"""How the leaderboard learns what a request costs. Training knows no engine, so the command brings the timer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.bundle import Bundle
from serve.manifest import Ensemble


@dataclass(frozen=True)
class Input:
    """One input of a request."""

    text: str
    pair: str | None = None
    """The second text if rows are pairs."""


class Timer(Protocol):
    """Measures requests in an engine on this machine."""

    problem: str | None
    """Why some requests were not measured, if some were not."""

    def milliseconds(
        self, bundle: Bundle, rungs: Mapping[str, Ensemble], inputs: Sequence[Input]
    ) -> dict[str, float]:
        """Return the median time of a request with one input for each rung, all in one warm engine. A rung that the
        engine cannot serve is left out."""
        ...
