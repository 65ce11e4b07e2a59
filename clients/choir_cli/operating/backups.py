"""`choir backup` and `choir restore`: copy a store to another place, and back."""

from pathlib import Path
from typing import Annotated

import typer

from choir_cli.console import out
from serve.terminal.words import counted


def backup(
    store: Annotated[Path, typer.Argument(help="The store, such as BUNDLE/.choir.")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
) -> None:
    """Copy a store as it is now: versions, adapters, audit. A server may be using it.

    The copy is a store itself. Ends with status 1 if the store lacks a file.
    """
    _copy(store, target, "Backed up")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `choir backup` wrote.")],
    store: Annotated[Path, typer.Argument(help="The store to make; it must not exist yet.")],
) -> None:
    """Make a store from a backup, after comparing all files with their digests."""
    _copy(source, store, "Restored")


def _copy(source: Path, target: Path, done: str) -> None:
    from rich.progress import track

    from serve.control.backup.backup import copy_store

    copied = copy_store(
        source,
        target,
        lambda needed: track(
            needed, "Copying", console=out, transient=True, disable=not out.is_terminal
        ),
    )
    out.say(
        f"{done} to {target}: {counted(copied.versions, 'version')}, {counted(copied.adapters, 'adapter')}, "
        f"{copied.bytes / 1e6:,.1f} MB."
    )
    for sentence in copied.lacking:
        out.say(f"Missing: {sentence}")
    if copied.lacking:
        raise typer.Exit(1)
