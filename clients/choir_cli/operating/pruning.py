"""`choir prune`: remove what nobody can reach any more from a server's store."""

from typing import Annotated

import typer

from choir_cli.connection import Token, Url
from choir_cli.console import out, show_json
from choir_client import Choir, Pruned
from serve.terminal.words import counted


def prune(
    keep_versions: Annotated[
        int | None,
        typer.Option(
            help="Of each ensemble, keep this many of the newest versions, and as many steps of rollbacks.",
            show_default="20",
        ),
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(help="Keep versions that are younger.", show_default="30")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it. Without this, only show what would go.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the server's answer as JSON.")
    ] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Remove old versions, and the files that only they need, from the server's store.

    What is active, loaded, part of a rollout or in a bundle stays, and so does what rollbacks return to.
    """
    with Choir(url, token) as choir:
        found = choir.prune(keep_versions=keep_versions, keep_days=keep_days, dry_run=not yes)
    if json:
        show_json(found.model_dump(mode="json", exclude_unset=True))
        return
    _show(found)


def _show(found: Pruned) -> None:
    for version in found.versions:
        out.say(f"{version.ensemble}@{version.version}, of {version.created[:10]}")
    for name in found.waiting:
        out.say(f"{name}: a rollout is under way, so all its versions stay for now")
    if not (found.versions or found.adapters or found.parameters):
        out.say("Nothing can go.")
        return
    sizes = (
        f"{counted(len(found.versions), 'version')}, {counted(len(found.adapters), 'adapter')} and "
        f"{counted(len(found.parameters), 'file')} of fitted parameters, {found.bytes / 1e6:,.1f} MB"
    )
    if found.dry_run:
        out.say(f"To go: {sizes}. Nothing is removed yet; add --yes to remove it.")
    else:
        out.say(f"Removed: {sizes}.")
