"""`choir status`, `swap`, `rollback` and `rollouts`: a running server."""

from typing import Annotated

import typer

from choir_cli.connection import Token, Url
from choir_cli.console import UsageError, out, show_json, table
from choir_cli.parsing import several
from choir_client import AdapterRef, Choir, Rollout

Json = Annotated[bool, typer.Option("--json", help="Print the answer as it came.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the rollout has started.")]


def status(json: Json = False, url: Url = None, token: Token = None) -> None:
    """What the server serves: ensembles, versions, members, rollouts in progress."""
    with Choir(url, token) as choir:
        ready = choir.ready()
        ensembles = choir.ensembles()
    if json:
        show_json([each.model_dump(mode="json", by_alias=True) for each in ensembles])
        return
    view = table(
        f"{choir.url}: {'ready' if ready.ok else 'not ready'}",
        "ensemble",
        "active",
        "versions",
        "members",
        "rollout",
    )
    for each in ensembles:
        view.add_row(
            each.name,
            str(each.active_version),
            _numbers(each.versions),
            "\n".join(f"{m.name}: {_adapters(m.adapters)}" for m in each.members),
            "" if each.rollout is None else f"{each.rollout.id} {each.rollout.state}",
        )
    out.print(view)
    for each in ensembles:
        if each.stale_fusion:
            out.print(
                f"{each.name}: the fusion was fitted on other adapters than the active ones",
                soft_wrap=True,
            )
        for difference in each.differences:
            out.print(f"{each.name}: {difference}", soft_wrap=True, markup=False)


def swap(
    name: Annotated[str, typer.Argument(help="The ensemble.")],
    members: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MEMBER=URI]...",
            help="New adapters, as file:///folder; twice for a member with two.",
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Instead of adapters: a version that exists already.")
    ] = None,
    expected_version: Annotated[
        int | None, typer.Option(help="Refuse unless this version is active now.")
    ] = None,
    allow_stale_fusion: Annotated[
        bool,
        typer.Option("--allow-stale-fusion", help="Keep a fusion fitted on the old adapters."),
    ] = False,
    no_wait: NoWait = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Replace adapters of an ensemble while it serves."""
    if bool(members) == (version is not None):
        raise UsageError("Say what to swap in: MEMBER=URI pairs, or --version N, not both.")
    with Choir(url, token) as choir:
        rollout = choir.swap(
            name,
            members=several("MEMBER=URI", members) if members else None,
            version=version,
            expected_version=expected_version,
            allow_stale_fusion=allow_stale_fusion,
            wait=not no_wait,
        )
    _say(name, rollout)


def rollback(
    name: Annotated[str, typer.Argument(help="The ensemble.")],
    to: Annotated[int | None, typer.Option(help="The version; the previous one without.")] = None,
    no_wait: NoWait = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Go back to the version that was active before."""
    with Choir(url, token) as choir:
        rollout = choir.rollback(name, to, wait=not no_wait)
    _say(name, rollout)


def rollouts(json: Json = False, url: Url = None, token: Token = None) -> None:
    """List the changes of version, newest first as the server gives them."""
    with Choir(url, token) as choir:
        found = choir.rollouts()
    if json:
        show_json([each.model_dump(mode="json", by_alias=True) for each in found])
        return
    view = table(None, "id", "ensemble", "from", "to", "state", "reason")
    for each in found:
        view.add_row(
            each.id,
            each.ensemble,
            str(each.from_version),
            str(each.to_version),
            each.state,
            each.reason or "",
        )
    out.print(view)


def _say(name: str, rollout: Rollout) -> None:
    reason = f": {rollout.reason}" if rollout.reason else ""
    out.print(
        f"{name}: version {rollout.from_version} -> {rollout.to_version}, {rollout.state}{reason} "
        f"(rollout {rollout.id})",
        soft_wrap=True,
    )
    if rollout.state == "aborted":
        raise typer.Exit(1)


def _adapters(adapters: list[AdapterRef]) -> str:
    return (
        ", ".join(f"{a.adapter} {a.digest.removeprefix('sha256:')[:12]}" for a in adapters)
        or "base"
    )


def _numbers(versions: list[dict[str, object]]) -> str:
    return ", ".join(str(each["version"]) for each in versions)
