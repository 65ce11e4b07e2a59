"""The log of one process: where it lies, and what goes into it."""

import logging
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal, TypeAlias

from serve.logs.events import EventFile
from serve.logs.lines import Line, LogFormat

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

CHOIRS = ("choir", "serve")
"""The roots of Choir's own loggers. The level of the log is theirs; of other libraries, warnings are logged."""
MAX_BYTES = 20_000_000
KEPT = 4
"""How many full files of a process are kept beside the one that is written."""


@dataclass(frozen=True)
class LogSettings:
    """Where the server logs, and how."""

    folder: Path
    level: LogLevel = "info"
    form: LogFormat = "json"


def open_log(settings: LogSettings, process: str) -> None:
    """Send what this process logs to its own file, `<process>.log`, and its events to the events of the server.

    Call it once."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(
        settings.folder / f"{process}.log",
        maxBytes=MAX_BYTES,
        backupCount=KEPT,
        encoding="utf-8",
        delay=True,
    )
    file.setFormatter(Line(process, settings.form))
    file.setLevel(settings.level.upper())
    root = logging.getLogger()
    root.addHandler(file)
    events = EventFile(settings.folder, process)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    for name in CHOIRS:
        logger = logging.getLogger(name)
        logger.addHandler(events)
        # Events are shown on the console at every level.
        logger.setLevel(min(level, logging.INFO))


def log_also(library: str) -> None:
    """Send to the log of this process what a library logs that hands nothing to the root logger. Call it after the
    library is imported, which sets its logger up anew."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RotatingFileHandler):
            logging.getLogger(library).addHandler(handler)
