"""What gateways count while a candidate is tried out, and how the counts of all of them add up."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Side: TypeAlias = Literal["candidate", "stable"]


@dataclass(frozen=True)
class Tally:
    """Requests that one version answered."""

    requests: int = 0
    errors: int = 0
    """Of these, those that it failed to answer, in whatever way."""
    seconds: float = 0.0
    """Of all together, each until its answer, or the first part of a stream."""

    @property
    def mean_seconds(self) -> float | None:
        return self.seconds / self.requests if self.requests else None

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.requests + other.requests,
            self.errors + other.errors,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Figures:
    """What was counted of one trial. Each number only ever grows."""

    candidate: Tally = field(default_factory=Tally)
    stable: Tally = field(default_factory=Tally)
    compared: int = 0
    """Requests that both versions answered."""
    agreed: float = 0.0
    """Sum over these of the share of their answers that were the same."""
    dropped: int = 0
    """Requests that were to be asked again and were not, because the queue was full."""

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            self.candidate + other.candidate,
            self.stable + other.stable,
            self.compared + other.compared,
            self.agreed + other.agreed,
            self.dropped + other.dropped,
        )

    @property
    def size(self) -> int:
        """Grows with every count."""
        return self.candidate.requests + self.stable.requests + self.compared + self.dropped

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Figures":
        tallies = {side: Tally(**values[side]) for side in ("candidate", "stable")}
        return cls(**{**values, **tallies})


def total(figures: Iterable[Figures]) -> Figures:
    return sum(figures, Figures())
