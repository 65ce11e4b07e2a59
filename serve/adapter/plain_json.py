"""Reads JSON files from other people, if they are small and not nested without end."""

from pathlib import Path
from typing import Any

from pydantic_core import from_json

MAX_BYTES = 1_000_000
"""Many times the size of what PEFT writes about an adapter."""


def read_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises ValueError, whose message goes on after the file's name, and
    OSError."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"is {size:,} bytes long; at most {MAX_BYTES:,} are read")
    try:
        value = from_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("must hold a JSON object")
    return value
