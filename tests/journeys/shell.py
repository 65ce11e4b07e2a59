"""A user's shell: commands as a page has them, on a terminal of 80 columns or in a pipe, and what they print."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len

COLUMNS = 80
SECONDS = 900
"""The longest that a command may take."""
UNBROKEN = 50
"""A line may be longer than the terminal for a word, such as a path, of at least so many columns."""


@dataclass(frozen=True)
class Said:
    """What a command printed, without colours, and its exit status."""

    command: str
    status: int
    raw: str

    @property
    def text(self) -> str:
        # A live table erases its lines and writes them anew.
        erased = (line.rpartition("\x1b[2K")[2] for line in self.raw.split("\n"))
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(erased)).replace("\r", "")

    @property
    def words(self) -> set[str]:
        return set(self.text.split())


class Shell:
    """Runs commands in `folder`, with the `choir` of this Python first in the path."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "COLUMNS"},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TERM": "xterm-256color",
            **variables,
        }

    def terminal(self, command: str, typed: str = "") -> Said:
        """Run a command on a terminal, where `typed` is typed in, and check what no user should see there."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, COLUMNS))
        with subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            raw = b"".join(_read(ours, process)).decode()
            os.close(ours)
        said = Said(command, process.returncode, raw)
        _check(said)
        for line in said.text.splitlines():
            unbroken = max((cell_len(word) for word in line.split()), default=0)
            assert cell_len(line) <= COLUMNS or unbroken >= UNBROKEN, f"{command}: {line!r}"
        return said

    def pipe(self, command: str, typed: str = "") -> Said:
        """Run a command in a pipe, and check that it prints neither colour nor markup there."""
        run = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        said = Said(command, run.returncode, run.stdout)
        _check(said)
        assert "\x1b" not in said.raw, said.raw
        return said

    def both(self, command: str) -> Said:
        """Run a command that changes nothing on a terminal and in a pipe. Each must say what the other says.

        Only headings of empty columns may be missing: a row that is too wide for the terminal is shown as a list of its
        cells."""
        shown, piped = self.terminal(command), self.pipe(command)
        assert shown.status == piped.status
        headings, rules = _headings(piped)
        assert shown.words - piped.words <= rules | _headings(shown)[1]
        assert piped.words - shown.words <= headings | rules
        return shown


def _headings(said: Said) -> tuple[set[str], set[str]]:
    """Return the words of the lines above rules, and the rules."""
    lines = said.text.splitlines()
    below = [n for n, line in enumerate(lines) if line and set(line) <= {"─", "-"}]
    headings = {word for n in below if n for word in lines[n - 1].split()}
    return headings, {lines[n] for n in below}


def _read(terminal: int, process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """Yields what is printed until the process has closed the terminal."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            # Linux reports an error, not an end, when the other side is closed.
            with contextlib.suppress(OSError):
                if part := os.read(terminal, 4096):
                    yield part
                    continue
            return
    process.kill()
    raise AssertionError(f"{process.args!r} did not end within {SECONDS} s")


def _check(said: Said) -> None:
    for never in ("Traceback", "…", "[bold]", "[/bold]", "Error:"):
        assert never not in said.raw, said.raw


def commands(page: Path) -> list[str]:
    """Return the `choir` commands in the blocks of a page, as a user would copy them: without comments, and each on one
    line."""
    # Blocks with a language are found too, so that their ends are not taken for beginnings.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    shell = "".join(content for language, content in blocks if not language)
    lines = shell.replace("\\\n", "").splitlines()
    return [
        re.sub(r"\s+# .*", "", re.sub(r" {2,}", " ", line))
        for line in lines
        if line.startswith("choir ")
    ]
