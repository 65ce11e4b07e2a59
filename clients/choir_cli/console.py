"""Output of the command: answers on stdout, and one sentence on stderr if it fails."""

import json
import os
import re
import sys
from typing import Any, NoReturn

import typer

from choir_client import APIError, ChoirError
from serve.errors import UserError
from serve.terminal.screen import Screen
from serve.terminal.sheet import Column, Sheet

out = Screen()


class UsageError(UserError):
    """The command line is wrong. The message says in one sentence what is, and what to write."""


FIELDS = (
    "allow_stale_fusion",
    "auto_promote",
    "expected_version",
    "max_error_rate",
    "max_latency_ratio",
    "max_seconds",
    "min_agreement",
    "min_requests",
)
"""Fields of the API that `choir swap` takes as flags."""


def sentence(error: Exception) -> str:
    """Return the sentence to print for `error`: its message, if that is written for users. A field of the API is called
    by the flag that sets it."""
    if isinstance(error, APIError):
        return re.sub(rf"'?\b({'|'.join(FIELDS)})\b'?", _flag, str(error))
    if isinstance(error, UserError | ChoirError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (
        f"Unexpected error, {type(error).__name__}: {error}; "
        "set CHOIR_DEBUG=1 and run the command again to see where it happened."
    )


def _flag(field: "re.Match[str]") -> str:
    return "--" + field[1].replace("_", "-").replace("auto-promote", "no-auto-promote")


def complain(error: Exception) -> None:
    """Print what went wrong on stderr."""
    Screen(stderr=True).say(f"choir: {sentence(error)}")


def fail(error: Exception) -> NoReturn:
    """Print what went wrong and exit: with status 2 if the command line is wrong, else with 1."""
    if os.environ.get("CHOIR_DEBUG"):
        raise error
    complain(error)
    sys.exit(2 if isinstance(error, UsageError) else 1)


def show_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str | None, *columns: str | Column) -> Sheet:
    """Return an empty table. A column given by its heading alone wraps by word.

    `number("rows")` and `whole("at")` of `serve.terminal.sheet` make columns that never wrap.
    """
    return Sheet(title, [Column(each) if isinstance(each, str) else each for each in columns])
