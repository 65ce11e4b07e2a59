"""Events: what an operator wants to see on the console, whichever process it happened in.

Each process appends its events to one file, and `choir serve` shows them. Only events stand in that file, as JSON, so
that it does not depend on the level or the form of the log."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

from serve.logs.lines import fields_of, time_of, with_fields, without_colour

EventKind: TypeAlias = Literal[
    "phase",
    "started",
    "start_failed",
    "swap",
    "rollback",
    "trial",
    "aborted",
    "recovery",
    "lost",
    "fault",
]
"""`phase`: how far a start has come. `started`: a process is ready. `start_failed`: it cannot start. `lost`: it is
silent or dead. `recovery`: something goes on after a crash. `fault`: an error that the server's log has more about."""

KINDS = frozenset(get_args(EventKind))

FILE = "events.jsonl"
"""The file of the events in the folder of the logs."""
MAX_BYTES = 10_000_000
"""A file of events that is larger than this is put aside when the server starts."""


@dataclass(frozen=True)
class Event:
    """One event, as it stands in the file."""

    time: str
    """ISO 8601, UTC."""
    process: str
    event: EventKind
    message: str
    done: int = 0
    """Of a `phase`: how many of its steps are done."""
    total: int = 0
    """Of a `phase`: how many steps it has; 0 if it has no steps."""

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """Return the event of one line; None for a line that holds none."""
        try:
            found = json.loads(line)
            known = {each.name: found[each.name] for each in fields(cls) if each.name in found}
            return cls(**known) if known.get("event") in KINDS else None
        except (ValueError, TypeError):
            return None


def tell(logger: logging.Logger, event: EventKind, message: str, **more: Any) -> None:
    """Log an event. It becomes a line of the log, and one on the console."""
    level = logging.ERROR if event in ("start_failed", "lost", "fault") else logging.INFO
    logger.log(level, "%s", message, extra=with_fields({"event": event, **more}))


def tell_phase(logger: logging.Logger, message: str, done: int = 0, total: int = 0) -> None:
    """Log how far the start of this process has come: `done` of `total` steps, if it has steps."""
    tell(logger, "phase", message, done=done, total=total)


class EventFile(logging.Handler):
    """Appends the events of this process to the file. Errors of Choir that belong to no request are events too."""

    def __init__(self, folder: Path, process: str) -> None:
        super().__init__(logging.INFO)
        self._file = folder / FILE
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        event = self._event(record)
        if event is None:
            return
        try:
            # One write of one short line: several processes append to this file.
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
        except OSError:
            self.handleError(record)

    def _event(self, record: logging.LogRecord) -> Event | None:
        given = fields_of(record)
        kind = given.get("event", "fault" if record.levelno >= logging.ERROR else None)
        if kind not in KINDS:
            return None
        done, total = given.get("done", 0), given.get("total", 0)
        message = without_colour(record.getMessage())
        return Event(time_of(record), self._process, kind, message, done, total)


class Events:
    """Reads the events that are appended to the file from now on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        if self._file.exists() and self._file.stat().st_size > MAX_BYTES:
            self._file.replace(folder / f"{FILE}.1")
        self._offset = self._file.stat().st_size if self._file.exists() else 0

    def new(self) -> Iterator[Event]:
        """Yield the events since the last call. A line that is not complete yet is left for the next one."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                event = Event.parse(line.decode("utf-8", "replace"))
                if event is not None:
                    yield event
