"""Reads CSV by the standard library's strict parser, which notices a cell that swallows the rows after it."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from serve.terminal.words import counted
from training.data.readers.lines import MAX_LINE, Lines
from training.data.readers.records import HEAD, Found, Record, Unreadable
from training.recipe.source import Source
from training.recipe.values import RecipeError


def read_delimited(stream: BinaryIO, source: Source, delimiter: str) -> Found:
    """Yield the rows of a CSV file. Raises RecipeError if it has no usable header."""
    csv.field_size_limit(MAX_LINE)
    lines = Lines(stream, source.encoding, source.name)
    rows = csv.reader(
        iter(lines),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if source.quotes else csv.QUOTE_NONE,
        strict=True,
    )
    names = source.names or _header(rows, lines, source.name)
    while True:
        first = lines.number + 1
        try:
            cells = next(rows)
        except StopIteration:
            yield from lines.drain()
            return
        except csv.Error as error:
            yield from lines.drain()
            yield Unreadable(first, _span(first, lines.number, str(error)), "")
            continue
        for passed in lines.drain():
            yield passed
            first = passed.place + 1
        if not cells:
            continue
        if source.extra_cells == "drop":
            cells = cells[: len(names)]
        if problem := _problem(cells, names, lines, first):
            yield Unreadable(first, problem, delimiter.join(cells)[:HEAD])
        else:
            yield Record(first, dict(zip(names, cells, strict=True)))


def _header(rows: Iterator[list[str]], lines: Lines, source: str) -> list[str]:
    try:
        names = next(rows)
    except StopIteration:
        raise RecipeError(f"{source} has no rows") from None
    except csv.Error as error:
        raise RecipeError(f"{source}: its first line is not a header: {error}") from None
    for passed in lines.drain():
        raise RecipeError(f"{source}: its header is {passed.reason}")
    if reason := lines.not_decoded(1, lines.number):
        raise RecipeError(f"{source}: its header is {reason}; name its `encoding`")
    names = [name.strip() for name in names]
    # Several columns may lack a name, such as the row numbers that pandas writes: no recipe names them.
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise RecipeError(f"{source} has two columns called {twice[0]!r}")
    return names


def _problem(cells: list[str], names: list[str], lines: Lines, first: int) -> str | None:
    if reason := lines.not_decoded(first, lines.number):
        return reason
    if len(cells) != len(names):
        return _span(
            first,
            lines.number,
            f"{counted(len(cells), 'cell')} where the header has {counted(len(names), 'column')}",
        )
    return None


def _span(first: int, last: int, reason: str) -> str:
    return reason if last <= first else f"{reason} (lines {first} to {last})"
