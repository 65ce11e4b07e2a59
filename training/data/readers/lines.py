"""Reads the lines of a file of unknown quality, in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO

from training.data.readers.records import HEAD, Unreadable
from training.recipe.values import RecipeError

MAX_LINE = 16 * 1024 * 1024
"""The longest line in bytes. Longer lines are skipped, so that a file without line ends cannot fill the memory."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, which some programs write and parsers do not accept."""

_PIECE = 1024 * 1024
_WIDE = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


class Lines:
    """Yields the decoded lines of a file to a parser. Lines that are too long go to `unreadable`."""

    def __init__(self, stream: BinaryIO, encoding: str, source: str) -> None:
        """Raises RecipeError if the encoding is unknown, or does not encode ASCII characters as ASCII does."""
        self._stream, self._encoding, self._source = stream, encoding, source
        self.number = 0
        """The number of the last line that was read."""
        self.unreadable: list[Unreadable] = []
        self.undecodable: set[int] = set()
        """The numbers of lines that are not in the encoding. The parser got them with replacement characters."""
        try:
            sound = "\n,".encode(encoding) == b"\n,"
        except LookupError:
            raise RecipeError(f"{source}: there is no encoding {encoding!r}") from None
        if not sound:
            raise RecipeError(f"{source}: save it as UTF-8; {encoding} files are not read by line")

    def __iter__(self) -> Iterator[str]:
        for line in self._ended():
            self.number += 1
            if self.number == 1:
                line = self._without_mark(line)
            if len(line) > MAX_LINE:
                self._pass_over(line)
                continue
            try:
                yield line.decode(self._encoding)
            except UnicodeDecodeError:
                self.undecodable.add(self.number)
                yield line.decode(self._encoding, errors="replace")

    def _ended(self) -> Iterator[bytes]:
        """Yield lines that end in line feeds; or in carriage returns, as old programs write, if the file has only
        these."""
        line = self._stream.readline(MAX_LINE + 1)
        if len(line) <= MAX_LINE and b"\r" in line and not line.endswith(b"\n"):
            yield from line.splitlines(keepends=True)
            return
        while line:
            yield line
            line = self._stream.readline(MAX_LINE + 1)

    def drain(self) -> Iterator[Unreadable]:
        """Yield the lines that were skipped since the last call."""
        passed, self.unreadable = self.unreadable, []
        yield from passed

    def not_decoded(self, first: int, last: int) -> str | None:
        """Return a reason if a line from `first` to `last` is not in the encoding, else None."""
        if not any(number in self.undecodable for number in range(first, last + 1)):
            return None
        return f"not {self._encoding.upper()}"

    def _without_mark(self, line: bytes) -> bytes:
        for mark, name in _WIDE:
            if line.startswith(mark):
                raise RecipeError(f"{self._source} is {name}; save it as UTF-8")
        return line.removeprefix(BYTE_ORDER_MARK)

    def _pass_over(self, head: bytes) -> None:
        size = len(head)
        piece = head
        while not piece.endswith(b"\n") and (piece := self._stream.readline(_PIECE)):
            size += len(piece)
        self.unreadable.append(
            Unreadable(
                self.number,
                f"a line of {size:,} bytes; more than {MAX_LINE:,} are not read",
                head[:HEAD].decode(self._encoding, errors="replace"),
            )
        )
