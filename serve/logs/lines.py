"""The form of a log line: one JSON object, or one line of text."""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

LogFormat: TypeAlias = Literal["json", "text"]

_FIELDS = "choir_fields"
"""The attribute of a log record that holds the fields of its line."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def with_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `extra` of a log call whose line has these fields beside its message."""
    return {_FIELDS: dict(fields)}


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the fields that a record was logged with; none for a record of a library."""
    fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return fields


def time_of(record: logging.LogRecord) -> str:
    """Return when something was logged: ISO 8601, UTC, with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def without_colour(text: str) -> str:
    """Return the text without a terminal's colour codes, which some libraries write into their messages."""
    return _COLOUR.sub("", text)


class Line(logging.Formatter):
    """Formats the records of one process."""

    def __init__(self, process: str, form: LogFormat) -> None:
        """`process`: the name of the process in each line, such as `gateway-0`."""
        super().__init__()
        self._process = process
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line = self._line(record)
        if self._form == "json":
            return json.dumps(line, ensure_ascii=False, default=str)
        head = " ".join(str(line.pop(name)) for name in ("time", "level", "process", "event"))
        message, trace = line.pop("message", None), line.pop("trace", None)
        parts = [head, *([str(message)] if message else [])]
        parts += [f"{name}={value}" for name, value in line.items() if value is not None]
        return " ".join(parts) + (f"\n{trace}" if trace else "")

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        given = dict(fields_of(record))
        line: dict[str, Any] = {
            "time": time_of(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "event": given.pop("event", "message"),
        }
        message = without_colour(record.getMessage())
        if message != line["event"]:
            line["message"] = message
        line |= given
        if line["event"] == "message":
            line["logger"] = record.name
        if record.exc_info and record.exc_info[0] is not None:
            line["trace"] = without_colour(self.formatException(record.exc_info))
        return line
