"""Reads JSON Lines, and files that hold one array of objects."""

import json
from io import BufferedReader
from typing import Any

from training.data.readers.lines import BYTE_ORDER_MARK, Lines
from training.data.readers.records import HEAD, Found, Record, Unreadable
from training.recipe.source import Source
from training.recipe.values import RecipeError

MAX_ARRAY = 256 * 1024 * 1024
"""The largest array in bytes; it is parsed as a whole."""


def read_json(stream: BufferedReader, source: Source) -> Found:
    """Yield the rows of JSON Lines or of an array. Raises RecipeError if an array cannot be parsed."""
    if stream.peek(64).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        yield from _array(stream, source)
        return
    lines = Lines(stream, source.encoding, source.name)
    for line in lines:
        yield from lines.drain()
        if not line.strip():
            continue
        reason = lines.not_decoded(lines.number, lines.number)
        cells = None if reason else _parsed(line)
        if isinstance(cells, dict):
            yield Record(lines.number, cells)
        else:
            yield Unreadable(lines.number, reason or "not a JSON object", line[:HEAD].rstrip())
    yield from lines.drain()


def _array(stream: BufferedReader, source: Source) -> Found:
    content = stream.read(MAX_ARRAY + 1)
    if len(content) > MAX_ARRAY:
        raise RecipeError(
            f"{source.name} is an array of more than {MAX_ARRAY:,} bytes; write JSON Lines"
        )
    try:
        rows = _parsed(content.removeprefix(BYTE_ORDER_MARK).decode(source.encoding))
    except (UnicodeDecodeError, LookupError):
        raise RecipeError(
            f"{source.name} is not {source.encoding.upper()}; name its `encoding`"
        ) from None
    if not isinstance(rows, list):
        raise RecipeError(f"cannot read {source.name} as json: its array is broken")
    for number, cells in enumerate(rows, start=1):
        if isinstance(cells, dict):
            yield Record(number, cells)
        else:
            yield Unreadable(number, "not a JSON object", json.dumps(cells)[:HEAD])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
