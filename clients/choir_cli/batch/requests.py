"""The lines of a batch's input, in OpenAI's format."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from choir_cli.console import UsageError

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/predict",
    "/v1/embeddings",
    "/classify",
)


@dataclass(frozen=True)
class Request:
    """One request of a batch."""

    number: int
    """The number of its line, from 1."""
    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that is no request."""

    number: int
    custom_id: str | None
    """What the line gives as `custom_id`, if that is a text."""
    reason: str


def count_lines(file: Path) -> int:
    """Return how many lines are not empty. Raises UsageError if the file cannot be read."""
    try:
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error


def read_requests(file: Path) -> Iterator[Request | BadLine]:
    """Yield each line that is not empty, one at a time, since a file may be larger than the memory."""
    seen: dict[str, int] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            read = _read(number, line)
            if isinstance(read, Request):
                first = seen.setdefault(read.custom_id, number)
                if first != number:
                    reason = f"custom_id {read.custom_id!r} is that of line {first} too"
                    read = BadLine(number, read.custom_id, reason)
            yield read


def _read(number: int, line: bytes) -> Request | BadLine:
    try:
        # Strict, as the server is: what could not be sent again, such as NaN and half a surrogate pair, is refused.
        fields = from_json(line, allow_inf_nan=False)
        json.dumps(fields, allow_nan=False)
    except ValueError as error:
        return BadLine(number, None, f"it is not valid JSON: {error}")
    if not isinstance(fields, dict):
        return BadLine(number, None, "it must be a JSON object")
    custom_id, url = fields.get("custom_id"), fields.get("url")
    body: Any = fields.get("body")
    named = custom_id if isinstance(custom_id, str) else None
    reason = None
    if not named:
        reason = "custom_id must be a text"
    elif fields.get("method") != "POST":
        reason = "method must be POST"
    elif url not in ROUTES:
        reason = f"url must be one of {', '.join(ROUTES)}"
    elif not isinstance(body, dict):
        reason = "body must be a JSON object"
    elif body.get("stream"):
        reason = "a batch has whole answers: leave stream out"
    if reason is not None:
        return BadLine(number, named, reason)
    return Request(number, str(named), str(url), body)
