"""A row whose label a person should look at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Suspect:
    """A row for review: the suggested label, its confidence and the reason."""

    text: str
    suggestion: str
    confidence: float
    reason: str
    origin: str
    given: str | None = None
    """The label that the row has."""
