"""Times as the database and the API write them."""

from datetime import UTC, datetime


def now() -> str:
    """The time now, as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def unix_seconds(time: str) -> float:
    """`time`, which `now` wrote, as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def seconds_since(time: str) -> float:
    """The seconds since `time`, which `now` wrote; 0 for a time to come."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
