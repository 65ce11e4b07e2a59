"""What a person sees: answers on stdout, one sentence on stderr when something is wrong."""

import json
import os
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from choir_client import ChoirError
from serve.errors import UserError

out = Console()


class UsageError(UserError):
    """The command line asks for something impossible, in one sentence."""


def sentence(error: Exception) -> str:
    """What to tell the person about `error`: its own words if they were meant for them."""
    if isinstance(error, UserError | ChoirError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (
        f"Choir met an error it does not know, {type(error).__name__}: {error}; "
        "CHOIR_DEBUG=1 shows where."
    )


def fail(error: Exception) -> NoReturn:
    """Say what was wrong and end with status 2 for a wrong command line, else 1."""
    if os.environ.get("CHOIR_DEBUG"):
        raise error
    typer.echo(f"choir: {sentence(error)}", err=True)
    sys.exit(2 if isinstance(error, UsageError) else 1)


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str | None, *columns: str) -> Table:
    return Table(
        *columns, title=title, title_justify="left", title_style="bold", header_style="dim"
    )
