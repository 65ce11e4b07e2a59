"""`choir status`, `swap`, `rollback`, `rollouts`, `promote` and `abort`: operate a running server."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from choir_cli.connection import Token, Url
from choir_cli.console import UsageError, out, show_json
from choir_cli.overview import server_version, show_audit, show_rollouts, show_status, state
from choir_cli.parsing import json_object, read_text, several
from choir_cli.waiting import follow
from choir_client import AuditEntry, Choir, EnsembleStatus, Rollout, Tally
from serve.terminal.words import counted

Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as JSON.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return as soon as the rollout has started.")
]
RolloutId = Annotated[str, typer.Argument(help="Id of the rollout; `choir rollouts` lists them.")]


class StrategyChoice(StrEnum):
    immediate = "immediate"
    shadow = "shadow"
    canary = "canary"


def status(json: Json = False, url: Url = None, token: Token = None) -> None:
    """Show what the server serves: ensembles, versions, members, and rollouts in progress."""
    with Choir(url, token) as choir:
        ready = choir.ready()
        ensembles = choir.ensembles()
        version = server_version(choir.url)
    if json:
        show_json([_as_it_came(each) for each in ensembles])
        return
    show_status(choir.url, ready, version, ensembles)


def swap(
    name: Annotated[str, typer.Argument(help="The ensemble.")],
    members: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEMBER=URI",
            help="New adapter of a member, such as a=file:///data/adapter. Repeat for each member, and for a second "
            "adapter of a member.",
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Instead of adapters: an existing version.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Instead of adapters: a JSON file with a new manifest."),
    ] = None,
    expected_version: Annotated[
        int | None, typer.Option(help="Refuse the swap unless this version is active.")
    ] = None,
    allow_stale_fusion: Annotated[
        bool,
        typer.Option(
            "--allow-stale-fusion",
            help="If the fusion cannot be fitted again, keep the one that was fitted on the old adapters.",
        ),
    ] = False,
    strategy: Annotated[
        StrategyChoice,
        typer.Option(
            metavar="NAME",
            help="immediate: switch at once. shadow: first compare on copies of requests. canary: first answer "
            "a share of the requests.",
        ),
    ] = StrategyChoice.immediate,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of the requests that the candidate gets, from 0 to 1.", show_default="0.1"
        ),
    ] = None,
    min_requests: Annotated[
        int | None,
        typer.Option(help="Requests that the candidate must answer first.", show_default="100"),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest share of the candidate's requests that may fail.", show_default="0.01"
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Smallest share of answers that must equal the active version's."),
    ] = None,
    max_latency_ratio: Annotated[
        float | None,
        typer.Option(help="Largest mean latency, as a multiple of the active version's."),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="Abort if the gates have not passed after so many seconds.",
            show_default="3600; none with --no-auto-promote",
        ),
    ] = None,
    no_auto_promote: Annotated[
        bool,
        typer.Option(
            "--no-auto-promote",
            help="Do not promote the candidate when the gates pass; wait for `choir promote`.",
        ),
    ] = False,
    no_wait: NoWait = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Make new adapters, another version or a new manifest active, without downtime."""
    if sum((bool(members), version is not None, manifest is not None)) != 1:
        raise UsageError(
            "Say what to swap in: either MEMBER=URI pairs, --version N or --manifest FILE."
        )
    gates = {
        "min_requests": min_requests,
        "max_error_rate": max_error_rate,
        "min_agreement": min_agreement,
        "max_latency_ratio": max_latency_ratio,
        "max_seconds": max_seconds,
    }
    options = {
        "share": share,
        "gates": _given(gates) or None,
        "auto_promote": False if no_auto_promote else None,
    }
    if strategy is StrategyChoice.immediate and _given(options):
        raise UsageError(
            "--share, --no-auto-promote and the gates need --strategy shadow or --strategy canary."
        )
    tried = strategy is not StrategyChoice.immediate
    with Choir(url, token) as choir:
        rollout = choir.swap(
            name,
            members=several("MEMBER=URI", members) if members else None,
            version=version,
            manifest=json_object(str(manifest), read_text(manifest)) if manifest else None,
            expected_version=expected_version,
            strategy={"kind": strategy.value, **_given(options)} if tried else None,
            allow_stale_fusion=allow_stale_fusion,
            wait=not no_wait and not tried,
        )
        if tried and not no_wait:
            _say(name, rollout)
            rollout = follow(choir, rollout)
    _say(name, rollout)


def rollback(
    name: Annotated[str, typer.Argument(help="The ensemble.")],
    to: Annotated[
        int | None,
        typer.Option(help="Version to go back to.", show_default="the one that was active before"),
    ] = None,
    no_wait: NoWait = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Go back to a version that was active before."""
    with Choir(url, token) as choir:
        rollout = choir.rollback(name, to, wait=not no_wait)
    _say(name, rollout)


def promote(
    rollout_id: RolloutId, no_wait: NoWait = False, url: Url = None, token: Token = None
) -> None:
    """Make the candidate of a shadow or canary active, whatever its gates say."""
    with Choir(url, token) as choir:
        rollout = choir.promote(rollout_id, wait=not no_wait)
    _say(rollout.ensemble or "", rollout)


def abort(rollout_id: RolloutId, url: Url = None, token: Token = None) -> None:
    """End a rollout before its commit. The active version stays."""
    with Choir(url, token) as choir:
        rollout = choir.abort(rollout_id)
    out.say(f"{rollout.ensemble}: version {rollout.from_version} stays (rollout {rollout.id})")


def rollouts(
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="List who requested which change and when, refused changes included."
        ),
    ] = False,
    json: Json = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List the latest rollouts, newest first."""
    with Choir(url, token) as choir:
        if audit:
            entries = choir.audit()
            if json:
                show_json([_as_it_came(each) for each in entries])
            else:
                show_audit(entries)
            return
        found = choir.rollouts()
    if json:
        show_json([_as_it_came(each) for each in found])
        return
    show_rollouts(found)


def _say(name: str, rollout: Rollout) -> None:
    """Print how far a rollout is, and what its trial has counted. Ends with status 1 if it was aborted."""
    reason = f": {rollout.reason}" if rollout.reason else ""
    out.say(
        f"{name}: version {rollout.from_version} -> {rollout.to_version}, {state(rollout)}{reason} "
        f"(rollout {rollout.id})"
    )
    trial = rollout.trial
    if trial is not None and trial.candidate.requests:
        out.say(f"candidate: {_counts(trial.candidate)}; active version: {_counts(trial.stable)}")
        if trial.agreement is not None:
            out.say(f"agreement: {trial.agreement:.1%} of {counted(trial.compared, 'request')}")
    if rollout.state == "aborted":
        raise typer.Exit(1)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _counts(tally: Tally) -> str:
    mean = f", {tally.mean_ms:.0f} ms" if tally.mean_ms is not None else ""
    return f"{counted(tally.requests, 'request')}, {counted(tally.errors, 'error')}{mean}"


def _as_it_came(answer: EnsembleStatus | Rollout | AuditEntry) -> dict[str, Any]:
    return answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
