"""The times that are written down."""

from datetime import UTC, datetime


def now() -> str:
    """The time, as it is written everywhere: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_since(time: str) -> float:
    """Since `time`, as `database.now` writes it."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
