"""What a server serves, its rollouts and its audit, as tables."""

from collections.abc import Mapping, Sequence

import httpx

from choir_cli.console import out, table
from choir_client import AdapterRef, AuditEntry, EnsembleStatus, Health, Rollout
from serve.terminal.sheet import number, whole

DEFAULT_URL = "http://127.0.0.1:8000"
DRAINING = "live, old version draining"
"""The new version answers. Only requests that the old one has are still running."""


def state(rollout: Rollout) -> str:
    """Return the state of a rollout in words."""
    return DRAINING if rollout.state == "draining" else rollout.state


def server_version(url: str) -> str | None:
    """Return the version of Choir that a server runs; None if it does not say."""
    try:
        found = httpx.get(f"{url}/version", timeout=5).raise_for_status().json()["choir"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return None if found is None else str(found)


def show_status(
    url: str, ready: Health, version: str | None, ensembles: Sequence[EnsembleStatus]
) -> None:
    """Print the ensembles, where their adapters came from, and what an operator should know of them."""
    out.say(
        f"{url}: {'ready' if ready.ok else 'not ready'}{f', Choir {version}' if version else ''}"
    )
    several = len({each.pool for each in ensembles}) > 1
    pool = ["pool"] if several else []
    overview = table(None, "ensemble", *pool, number("active"), "versions", "rollout")
    adapters = table(None, "ensemble", "member", "adapter", "digest", "swapped in", "from")
    for each in ensembles:
        change = "" if each.rollout is None else f"{each.rollout.id} {state(each.rollout)}"
        pool = [each.pool or ""] if several else []
        overview.add_row(each.name, *pool, str(each.active_version), _numbers(each), change)
        for member in each.members:
            for adapter in member.adapters:
                adapters.add_row(each.name, member.name, *_adapter(adapter))
            if not member.adapters:
                adapters.add_row(each.name, member.name, "the base alone", "", "", "")
    for view in (overview, adapters):
        out.print()
        out.print(view)
    out.print()
    for each in ensembles:
        _show_notes(url, each)


def _show_notes(url: str, ensemble: EnsembleStatus) -> None:
    name = ensemble.name
    if ensemble.stale_fusion:
        out.say(f"{name}: the fusion was fitted on other adapters than the active ones")
    elif ensemble.fusion_fit.get("state") == "refitted":
        out.say(f"{name}: the fusion was fitted again for the active adapters")
    if not ensemble.pinned:
        out.say(f"{name}: loaded on demand, {_where(ensemble)}")
    for difference in ensemble.differences:
        out.say(f"{name}: {difference}")
    if ensemble.bring_in is not None:
        place = "" if url == DEFAULT_URL else f" --url {url}"
        out.say(f"{name}: to serve what the start has brought:")
        out.verbatim(f"  {ensemble.bring_in}{place}")


def show_rollouts(rollouts: Sequence[Rollout]) -> None:
    """Print rollouts with who asked for them, and what they bring."""
    view = table(
        None,
        *(whole("id"), "ensemble", number("from"), number("to"), "strategy", "state"),
        *("who", whole("when"), "adapters", "reason"),
    )
    for each in rollouts:
        view.add_row(
            *(each.id, each.ensemble, str(each.from_version), str(each.to_version)),
            *(each.strategy, state(each), each.actor, _moment(each.created)),
            *(_uris(each.uris), each.reason),
        )
    out.print(view)


def show_audit(entries: Sequence[AuditEntry]) -> None:
    """Print who asked for which change and when, and what came of it."""
    view = table(
        None,
        *(whole("at"), "who", "what", "ensemble", number("from"), number("to")),
        *("outcome", "adapters", "reason"),
    )
    for each in entries:
        view.add_row(
            *(_moment(each.at), each.actor, each.action, each.ensemble),
            *("" if v is None else str(v) for v in (each.from_version, each.to_version)),
            *(each.outcome, _uris(each.uris), each.reason),
        )
    out.print(view)


def _adapter(adapter: AdapterRef) -> tuple[str, str, str, str]:
    """Return the cells of an adapter: name, digest, when and by whom it was swapped in, and from where."""
    swapped = "with the bundle"
    if adapter.swapped_by is not None:
        swapped = f"{_moment(adapter.swapped_at)} by {adapter.swapped_by}"
    digest = adapter.digest.removeprefix("sha256:")[:12]
    return (adapter.adapter, digest, swapped, adapter.uri or "not recorded")


def _moment(time: str | None) -> str:
    """Return a time of the server to the second, in UTC as the server gives it."""
    return "" if time is None else f"{time[:19]}Z"


def _uris(uris: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"{member}: {uri}" for member, several in uris.items() for uri in several)


def _where(ensemble: EnsembleStatus) -> str:
    """Return in words which engines have the active version loaded."""
    for version in ensemble.versions:
        if version.get("version") == ensemble.active_version and version.get("loaded_on"):
            return f"now on {', '.join(version['loaded_on'])}"
    return "on no engine now"


def _numbers(ensemble: EnsembleStatus) -> str:
    shown = ", ".join(str(each["version"]) for each in ensemble.versions)
    rest = (ensemble.version_count or 0) - len(ensemble.versions)
    return f"{shown} ({rest} more)" if rest > 0 else shown
