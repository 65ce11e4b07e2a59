"""The progress table on standard error: one row for each piece of work, with its state, bar and loss."""

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WAITING, RUNNING, DONE = "waiting", "running", "done"

EVERY_SECONDS = 30.0
"""Without a terminal: how often the running rows are printed."""
LOG_COLUMNS = 160
"""Width of a line in a file or a pipe. rich's default is 80, which cuts the times off."""


class ProgressTable:
    """Shows the progress of work.

    On a terminal, this is a live table of running and waiting rows below the finished ones. Elsewhere, a row is printed
    when it is finished, and every `every` seconds while it runs. Several threads may report at once.
    """

    def __init__(self, console: Console | None = None, every: float = EVERY_SECONDS) -> None:
        self.console = console or _standard_error()
        self._every = every
        self._table = _Table(
            # A title may hold a value of a search, and brackets in it are not rich's markup.
            TextColumn("{task.description:<28}", markup=False),
            TextColumn("{task.fields[state]:<7}"),
            BarColumn(bar_width=24, pulse_style="bar.back"),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._rows: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._repeating: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._table.start()
        if self._table.disable:
            self._over.clear()
            self._repeating = threading.Thread(
                target=self._repeat, name="progress-table", daemon=True
            )
            self._repeating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._repeating is not None:
            self._repeating.join()
        with self._lock:
            for row in self._by_title(WAITING):
                self._remove(row)
            unfinished = self._by_title(RUNNING)
            self._table.stop()
            if self._table.disable:
                self._print(unfinished)

    def expect(self, title: str) -> None:
        """Show a piece of work as waiting."""
        with self._lock:
            if title not in self._rows:
                self._rows[title] = self._table.add_task(
                    title, start=False, total=0, state=WAITING, loss=""
                )

    def begin(self, title: str, total: int, done: int = 0) -> None:
        self.expect(title)
        with self._lock:
            row = self._rows[title]
            self._table.reset(row, total=total, completed=done, state=RUNNING, loss="")

    def reach(self, title: str, done: int, loss: float | None = None) -> None:
        with self._lock:
            if title in self._rows:
                self._table.update(self._rows[title], completed=done)
                if loss is not None:
                    self._table.update(self._rows[title], loss=f"loss {loss:.3f}")

    def end(self, title: str) -> None:
        with self._lock:
            if title not in self._rows:
                return
            [task] = (each for each in self._table.tasks if each.id == self._rows[title])
            if task.fields["state"] == RUNNING:
                self._table.stop_task(task.id)
                self._table.update(task.id, state=DONE)
                self._print([task])
            self._remove(task)

    def _repeat(self) -> None:
        while not self._over.wait(self._every):
            with self._lock:
                self._print(self._by_title(RUNNING))

    def _by_title(self, state: str) -> list[Task]:
        return [task for task in self._table.tasks if task.fields["state"] == state]

    def _print(self, tasks: Sequence[Task]) -> None:
        if tasks:
            self.console.print(self._table.make_tasks_table(tasks))

    def _remove(self, task: Task) -> None:
        self._table.remove_task(task.id)
        del self._rows[task.description]


def _standard_error() -> Console:
    console = Console(stderr=True)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = LOG_COLUMNS
    return console


class _Table(Progress):
    """rich's progress with running rows first, so that a short screen shows them."""

    def get_renderables(self) -> Iterable[RenderableType]:
        order = sorted(self.tasks, key=lambda task: task.fields["state"] == WAITING)
        yield self.make_tasks_table(order)
