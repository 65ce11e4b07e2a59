"""Runs the commands of a page of the docs as a person does: on a terminal of 80 columns, or into a pipe."""

import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = 80
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def blocks(page: str, heading: str | None = None) -> Iterator[str]:
    """Yield the fenced blocks of a page, from the `heading` on."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if heading is not None:
        text = text[text.index(f"\n## {heading}\n") :]
    for match in re.finditer(r"^```[a-z]*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        yield match[1]


@dataclass(frozen=True)
class Ran:
    """What a command showed."""

    status: int
    text: str

    @property
    def plain(self) -> str:
        """The text without colours and movements of the cursor."""
        return CONTROL.sub("", self.text)

    @property
    def lines(self) -> list[str]:
        """The lines as they stand in the end: what was written over in place is left out."""
        return [line.rpartition("\r")[2].rstrip() for line in self.plain.split("\n")]

    def after(self, start: str) -> str:
        """Return the rest of the line that begins with `start`."""
        return next(line for line in self.lines if line.startswith(start)).removeprefix(start)


@dataclass(frozen=True)
class Shell:
    """A person's folder, and whether a terminal or a pipe is before them."""

    folder: Path
    terminal: bool

    def run(self, line: str) -> Ran:
        """Run a line such as `choir train recipe.yaml`; a comment at its end is left out."""
        name, *arguments = shlex.split(line, comments=True)
        assert name == "choir", line
        command = [sys.executable, "-m", "choir_cli.main", *arguments]
        hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        own = {name: value for name, value in os.environ.items() if name not in hidden}
        own |= {"TERM": "xterm-256color"}
        return self._on_terminal(command, own) if self.terminal else self._piped(command, own)

    def _piped(self, command: list[str], env: dict[str, str]) -> Ran:
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        return Ran(done.returncode, done.stderr + done.stdout)

    def _on_terminal(self, command: list[str], env: dict[str, str]) -> Ran:
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        with subprocess.Popen(
            command, cwd=self.folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            shown = b"".join(iter(lambda: _read(ours), b""))
            status = process.wait()
        os.close(ours)
        return Ran(status, shown.decode().replace("\r\n", "\n"))


def _read(terminal: int) -> bytes:
    """Return what was written to a terminal, or nothing after its last writer is gone."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
