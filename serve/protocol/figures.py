"""What gateways count while a candidate is tried out, and the sum over all gateways."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Side: TypeAlias = Literal["candidate", "stable"]


@dataclass(frozen=True)
class Tally:
    """The requests to one version."""

    requests: int = 0
    errors: int = 0
    """How many of them it failed to answer, for any reason."""
    seconds: float = 0.0
    """The sum of their latencies: seconds until the answer, or until the first part of a stream."""

    @property
    def mean_seconds(self) -> float | None:
        """The mean latency in seconds; None without requests."""
        return self.seconds / self.requests if self.requests else None

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.requests + other.requests,
            self.errors + other.errors,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Figures:
    """The counts of one trial. No number ever gets smaller."""

    candidate: Tally = field(default_factory=Tally)
    stable: Tally = field(default_factory=Tally)
    compared: int = 0
    """Requests that both versions answered."""
    agreed: float = 0.0
    """The sum over these requests of the share of equal answers, each from 0 to 1."""
    dropped: int = 0
    """Requests that should have gone to the other version too, and did not because the queue was full."""

    @property
    def agreement(self) -> float | None:
        """The mean share of equal answers, from 0 to 1; None before any comparison."""
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
        """A number that grows with every count, so that of two reports the newer one is known."""
        return self.candidate.requests + self.stable.requests + self.compared + self.dropped

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON values, for the database."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Figures":
        """Return the counts that `as_json` gave."""
        tallies = {side: Tally(**values[side]) for side in ("candidate", "stable")}
        return cls(**{**values, **tallies})


def total(figures: Iterable[Figures]) -> Figures:
    """Return the sum of the counts of several gateways."""
    return sum(figures, Figures())
