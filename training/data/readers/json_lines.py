"""JSON Lines, and files that hold one array of objects."""

import json
from typing import Any, BinaryIO

from training.data.readers.lines import Lines
from training.data.readers.records import HEAD, Found, Record, Unreadable
from training.recipe.source import Source
from training.recipe.values import RecipeError

MAX_ARRAY = 256 * 1024 * 1024
"""Bytes; an array is parsed as a whole."""


def read_json(stream: BinaryIO, source: Source) -> Found:
    """Rows of JSON Lines or of an array; raises RecipeError when an array cannot be parsed."""
    lines = Lines(stream, source.encoding, source.name)
    for number, line in enumerate(iter(lines), start=1):
        yield from lines.drain()
        if number == 1 and line.lstrip().startswith("["):
            yield from _array(line, stream, source)
            return
        if not line.strip():
            continue
        reason = lines.not_decoded(lines.number, lines.number)
        cells = None if reason else _parsed(line)
        if isinstance(cells, dict):
            yield Record(lines.number, cells)
        else:
            yield Unreadable(lines.number, reason or "no JSON object", line[:HEAD].rstrip())
    yield from lines.drain()


def _array(begin: str, stream: BinaryIO, source: Source) -> Found:
    rest = stream.read(MAX_ARRAY + 1)
    if len(rest) > MAX_ARRAY:
        raise RecipeError(
            f"{source.name} is an array of more than {MAX_ARRAY:,} bytes; write JSON Lines"
        )
    try:
        rows = _parsed(begin + rest.decode(source.encoding))
    except UnicodeDecodeError:
        raise RecipeError(
            f"{source.name} is not {source.encoding.upper()}; name its `encoding`"
        ) from None
    if not isinstance(rows, list):
        raise RecipeError(f"cannot read {source.name} as json: its array is broken")
    for number, cells in enumerate(rows, start=1):
        if isinstance(cells, dict):
            yield Record(number, cells)
        else:
            yield Unreadable(number, "no JSON object", json.dumps(cells)[:HEAD])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
