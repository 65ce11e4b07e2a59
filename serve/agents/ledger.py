"""What one gateway counts of trials, until the controller has heard of it."""

from collections.abc import Collection
from dataclasses import replace

from serve.protocol.figures import Figures, Side, Tally


class Ledger:
    """One gateway's counts, by trial. Whatever comes in for a trial that has ended is ignored."""

    def __init__(self) -> None:
        self._figures: dict[str, Figures] = {}

    def follow(self, attempts: Collection[str]) -> None:
        """These trials are under way now, and no others."""
        self._figures = {each: self._figures.get(each, Figures()) for each in attempts}

    def answered(self, attempt: str, side: Side, seconds: float, *, failed: bool) -> None:
        """A version has answered a request, or failed to."""
        known = self._figures.get(attempt)
        if known is None:
            return
        one = Tally(1, int(failed), seconds)
        if side == "candidate":
            self._figures[attempt] = replace(known, candidate=known.candidate + one)
        else:
            self._figures[attempt] = replace(known, stable=known.stable + one)

    def compared(self, attempt: str, agreement: float) -> None:
        """Both versions have answered a request; `agreement` is the share of equal answers."""
        self._add(attempt, Figures(compared=1, agreed=agreement))

    def dropped(self, attempt: str) -> None:
        """A request was not asked again."""
        self._add(attempt, Figures(dropped=1))

    def figures(self) -> dict[str, Figures]:
        """By rollout."""
        return dict(self._figures)

    def _add(self, attempt: str, more: Figures) -> None:
        if attempt in self._figures:
            self._figures[attempt] += more
