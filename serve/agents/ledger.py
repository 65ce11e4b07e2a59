"""What one gateway counts about each trial. Its reports carry the counts to the controller."""

from collections.abc import Collection
from dataclasses import replace

from serve.protocol.figures import Figures, Side, Tally


class Ledger:
    """The counts of one gateway, by rollout. Ignores what is counted for a trial that has ended."""

    def __init__(self) -> None:
        self._figures: dict[str, Figures] = {}

    def follow(self, attempts: Collection[str]) -> None:
        """Keep the counts of these rollouts' trials, and drop all others."""
        self._figures = {each: self._figures.get(each, Figures()) for each in attempts}

    def answered(self, attempt: str, side: Side, seconds: float, *, failed: bool) -> None:
        """Count a request that a version answered after `seconds`, or failed to answer."""
        known = self._figures.get(attempt)
        if known is None:
            return
        one = Tally(1, int(failed), seconds)
        if side == "candidate":
            self._figures[attempt] = replace(known, candidate=known.candidate + one)
        else:
            self._figures[attempt] = replace(known, stable=known.stable + one)

    def compared(self, attempt: str, agreement: float) -> None:
        """Count a request that both versions answered. `agreement` is the share of equal answers, from 0 to 1."""
        self._add(attempt, Figures(compared=1, agreed=agreement))

    def dropped(self, attempt: str) -> None:
        """Count a request that should have gone to the other version too, and did not because the queue was full."""
        self._add(attempt, Figures(dropped=1))

    def figures(self) -> dict[str, Figures]:
        """Return all counts so far, by rollout."""
        return dict(self._figures)

    def _add(self, attempt: str, more: Figures) -> None:
        if attempt in self._figures:
            self._figures[attempt] += more
