"""The console of `choir serve`: what an operator sees of the server, and nothing of the libraries below it.

Ray and its libraries write to the terminal as they like, some of it below Python. While the server runs, whatever
anybody but the console writes goes into a file beside the logs."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TextIO

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from serve.logs.events import Event
from serve.logs.lines import without_colour

ASIDE = "driver.log"
"""The file for what libraries write, in the folder of the logs."""
ENGINE = "engine-"
"""How the names of engines' processes begin."""
STEP_SECONDS = 2.0
"""In a pipe, steps of one phase of one process are shown at most this often."""


class Console:
    """Writes lines to a terminal or a pipe. On a terminal, a bar shows how far the start has come."""

    def __init__(self, out: TextIO, engines: int) -> None:
        """`engines`: how many engines the server has. With several, each phase names its process."""
        self._terminal = Terminal(file=out, highlight=False, markup=False, soft_wrap=True)
        self._several = engines > 1
        self._ready = False
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, tuple[str, float]] = {}
        """Process -> its last phase, and when a line said so."""

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Show the bar until the server is ready, if there is a terminal."""
        with self._bar if self._terminal.is_terminal else contextlib.nullcontext():
            yield

    def say(self, line: str) -> None:
        """Write one line."""
        self._terminal.print(line)

    def ready(self, line: str) -> None:
        """Write the line that says that the server answers. From now on each line has its time."""
        if self._terminal.is_terminal:
            self._bar.stop()
        self._ready = True
        self.say(line)

    def show(self, events: Iterable[Event]) -> None:
        """Write what happened: until the server is ready how engines start, and afterwards everything with its time."""
        for event in events:
            if event.event == "phase":
                if not self._ready:
                    self.phase(event.message, event.process, event.done, event.total)
            elif self._ready:
                at = datetime.fromisoformat(event.time).astimezone()
                self.say(f"{at:%Y-%m-%d %H:%M:%S} {event.message}")
            elif event.event != "start_failed" and event.process.startswith(ENGINE):
                self.say(event.message)

    def phase(self, message: str, process: str = "", done: int = 0, total: int = 0) -> None:
        """Show how far the start of a process has come: `done` of `total` steps, if it has steps."""
        step = f" {min(done + 1, total)} of {total}" if total else ""
        name = f"{process}: " if self._several and process else ""
        if self._terminal.is_terminal:
            task = self._tasks.get(process)
            if task is None:
                task = self._tasks[process] = self._bar.add_task("", total=None)
            self._bar.update(
                task, description=f"{name}{message}{step}", completed=done, total=total or None
            )
            return
        told, at = self._told.get(process, ("", 0.0))
        if told != message or (monotonic() - at >= STEP_SECONDS and step):
            self._told[process] = message, monotonic()
            self.say(f"{name}{message}{step}")


@contextlib.contextmanager
def only_console(folder: Path) -> Iterator[TextIO]:
    """Yield a stream to where this process writes. What anything else writes goes to a file in `folder`."""
    sys.stdout.flush()
    sys.stderr.flush()
    outputs = [os.dup(1), os.dup(2)]
    aside = folder / ASIDE
    with aside.open("wb") as file, os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield out
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, output in enumerate(outputs, 1):
                os.dup2(output, number)
                os.close(output)
            with contextlib.suppress(OSError):
                text = aside.read_text(encoding="utf-8", errors="replace")
                aside.write_text(without_colour(text), encoding="utf-8")
