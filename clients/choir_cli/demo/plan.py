"""The parts of the demo: what comes, how long each part takes, and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from choir_cli.console import out, table


@dataclass(frozen=True)
class Part:
    """One part of the demo."""

    name: str
    what: str
    seconds: int
    """About how long it takes on two idle cores."""


PARTS = (
    Part("train", "a small base from nothing, and each team's adapter on its own messages", 170),
    Part("serve", "Ray Serve and vLLM; they start while the last figures are computed", 30),
    Part("ask", "predictions and streamed replies, of members alone and fused", 2),
    Part("measure", "every member and every fusion method on test messages of all teams", 25),
    Part("swap", "a team replaces its adapter, while clients ask without a pause", 8),
    Part("what happened", "the leaderboard, its recommendation, and where the time went", 1),
)


@dataclass
class Plan:
    """Prints what comes, and keeps the seconds of each part."""

    took: dict[str, float] = field(default_factory=dict)

    def show(self) -> None:
        """Print all parts with their expected times."""
        whole = sum(part.seconds for part in PARTS)
        out.print(f"What comes: about {whole} s on two idle cores.")
        for part in PARTS:
            out.say(f"  {part.name:14} {part.seconds:3} s  {part.what}")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Print the part's heading, and take its time."""
        out.rule(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self.took[name] = time.monotonic() - started

    def show_times(self) -> None:
        """Print how long each finished part took."""
        view = table("where the time went", "part", "expected", "took")
        for part in PARTS:
            if part.name in self.took:
                view.add_row(part.name, f"{part.seconds} s", f"{self.took[part.name]:.0f} s")
        view.add_row("in all", "", f"{sum(self.took.values()):.0f} s")
        out.print(view)
