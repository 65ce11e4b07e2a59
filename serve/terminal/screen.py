"""The console that commands print to: a terminal or a pipe."""

import textwrap
from typing import Any

from rich.console import Console, ConsoleDimensions

UNBOUNDED = 100_000
"""Columns of a pipe: more than any table needs."""


class Screen(Console):
    """A rich console for plain text.

    Words in brackets are text and not markup, and nothing is coloured by what it looks like. In a pipe a line stays one
    line, a table has the width that it needs, and there is no colour.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size; in a pipe a width without limit."""
        found = super().size
        return found if self.is_terminal else ConsoleDimensions(UNBOUNDED, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console.print` does, but without cutting what is longer than a line."""
        super().print(*objects, **{"crop": False, **options})

    def rule(self, title: Any = "", **options: Any) -> None:
        """Print a title between two lines; in a pipe the lines are short."""
        if self.is_terminal:
            super().rule(title, **options)
        else:
            self.print(f"--- {title} ---")

    def say(self, line: str, style: str | None = None) -> None:
        """Print sentences. On a terminal they wrap by word; a word that is longer than a line, such as a path, is not
        broken."""
        wrapped = (
            textwrap.fill(
                each,
                self.width,
                subsequent_indent=" " * (len(each) - len(each.lstrip(" "))),
                break_long_words=False,
                break_on_hyphens=False,
            )
            for each in line.split("\n")
        )
        self.print("\n".join(wrapped), style=style, soft_wrap=True)

    def verbatim(self, line: str) -> None:
        """Print what is to be copied, such as a command: on one line, however long it is."""
        self.print(line, soft_wrap=True)
