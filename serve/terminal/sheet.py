"""A table for people, in the one style of all commands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a sheet. Its cells wrap by word, unless they are `whole`."""

    heading: str
    whole: bool = False
    right: bool = False
    """Whether the cells, such as numbers, end at the right edge."""

    @property
    def wraps(self) -> bool:
        return not (self.whole or self.right)


def number(heading: str) -> Column:
    """Return a column of numbers: never wrapped, and aligned at the right."""
    return Column(heading, whole=True, right=True)


def whole(heading: str) -> Column:
    """Return a column whose cells, such as time stamps, never wrap."""
    return Column(heading, whole=True)


@dataclass
class Sheet:
    """A table that is as wide as it needs to be, or as there is room: then cells wrap by word.

    No word is cut. If the longest words do not fit beside each other, each row is shown as a list of its cells.
    """

    title: str | None
    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)
    """Rows that a terminal shows in bold. A mark in a cell must say the same: a pipe has no bold."""

    def add_row(self, *cells: str | None, marked: bool = False) -> None:
        """Add a row, with one cell for each column; None is an empty cell."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        if marked:
            self.marked.add(len(self.rows))
        self.rows.append([cell or "" for cell in cells])

    def fits(self, width: int) -> bool:
        """Return whether it is a table at this width, and not a list of cells."""
        return self._widths(width) is not None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        lines = (
            self._lists(console, options.max_width)
            if widths is None
            else self._table(console, widths)
        )
        for line in [Text(self.title, style="bold"), *lines] if self.title else lines:
            line.overflow = "ignore"
            yield line

    def _widths(self, room: int) -> list[int] | None:
        """Return the width of each column, or None if the longest words do not fit into `room`."""
        cells = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        widths = [
            max(_longest_line([column.heading, *own]), 1)
            for column, own in zip(self.columns, cells, strict=True)
        ]
        least = [
            max(_longest_word([column.heading]), _longest_word(own), 1)
            if column.wraps
            else max(_longest_word([column.heading]), _longest_line(own), 1)
            for column, own in zip(self.columns, cells, strict=True)
        ]
        room -= GAP * (len(widths) - 1)
        if sum(least) > room:
            return None
        while sum(widths) > room:
            spare = [width - low for width, low in zip(widths, least, strict=True)]
            # The widest of those that can give.
            _, place = max((widths[n], n) for n, free in enumerate(spare) if free > 0)
            widths[place] -= 1
        return widths

    def _table(self, console: Console, widths: Sequence[int]) -> Iterator[Text]:
        yield from self._lines(console, [c.heading for c in self.columns], widths, "dim")
        rule = "─" if console.encoding.startswith("utf") else "-"
        yield Text(rule * (sum(widths) + GAP * (len(widths) - 1)), style="dim")
        for place, row in enumerate(self.rows):
            yield from self._lines(console, row, widths, "bold" if place in self.marked else "")

    def _lines(
        self, console: Console, row: Sequence[str], widths: Sequence[int], style: str
    ) -> Iterator[Text]:
        """Yields the lines of one row. No line has spaces at its end."""
        cells = [_wrapped(console, cell, width) for cell, width in zip(row, widths, strict=True)]
        for line in zip_longest(*cells, fillvalue=""):
            padded = (
                " " * (width - cell_len(part)) + part
                if column.right
                else part + " " * (width - cell_len(part))
                for column, part, width in zip(self.columns, line, widths, strict=True)
            )
            yield Text((" " * GAP).join(padded).rstrip(), style=style)

    def _lists(self, console: Console, room: int) -> Iterator[Text]:
        """Yields each row as lines of a heading and its cell. A word longer than the line goes on behind its end."""
        left = max(cell_len(column.heading) for column in self.columns)
        for place, row in enumerate(self.rows):
            if place:
                yield Text()
            for column, cell in zip(self.columns, row, strict=True):
                right = max(room - left - GAP, _longest_word([cell]))
                heading = column.heading + " " * (left - cell_len(column.heading) + GAP)
                for number, part in enumerate(_wrapped(console, cell, right) if cell else []):
                    lead = " " * cell_len(heading) if number else heading
                    yield Text.assemble((lead, "dim"), part)


def _wrapped(console: Console, cell: str, width: int) -> list[str]:
    """Return the cell's lines, wrapped by word. `width` is at least that of its longest word."""
    return [line.plain.rstrip() for line in Text(cell).wrap(console, width, overflow="fold")]


def _longest_line(cells: Sequence[str]) -> int:
    return max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)


def _longest_word(cells: Sequence[str]) -> int:
    return max((cell_len(word) for cell in cells for word in cell.split()), default=0)
