"""Metrics of replicas and rollouts: who is there, which versions they hold, and what is under way."""

from collections.abc import Collection, Mapping

from prometheus_client import Counter, Gauge

from serve.metrics import REGISTRY

_LEASES_LOST = Counter(
    "choir_leases_lost_total",
    "Leases that ran out, because an engine or a gateway was silent.",
    ["kind"],
    registry=REGISTRY,
)
_LIVE_REPLICAS = Gauge(
    "choir_live_replicas",
    "Engines and gateways that hold a lease.",
    ["kind"],
    registry=REGISTRY,
)
_LOAD_FAILURES = Counter(
    "choir_load_failures_total",
    "Versions that an engine could not load, by ensemble.",
    ["ensemble"],
    registry=REGISTRY,
)
_ACTIVE_VERSION_MISSING = Gauge(
    "choir_active_version_missing",
    "1 while an engine should hold the active version and does not.",
    ["ensemble"],
    registry=REGISTRY,
)
_ROUTED_VERSION = Gauge(
    "choir_routed_version",
    "The version to which a gateway sends requests for the plain name.",
    ["ensemble"],
    registry=REGISTRY,
)
_PHASE_STARTED = Gauge(
    "choir_rollout_phase_started_seconds",
    "When a rollout under way entered its phase, in Unix time.",
    ["ensemble", "strategy", "phase"],
    registry=REGISTRY,
)


def lease_lost(kind: str) -> None:
    """Count a lease that ran out. `kind`: engine or gateway."""
    _LEASES_LOST.labels(kind).inc()


def leases_held(live: Mapping[str, int]) -> None:
    """Set how many processes of each kind hold a lease."""
    for kind, count in live.items():
        _LEASES_LOST.labels(kind)
        _LIVE_REPLICAS.labels(kind).set(count)


def load_failed(ensemble: str) -> None:
    """Count a version that this engine could not load."""
    _LOAD_FAILURES.labels(ensemble).inc()


def active_versions_held(ensembles: Mapping[str, bool]) -> None:
    """Set for each ensemble whether this engine holds its active version."""
    _ACTIVE_VERSION_MISSING.clear()
    for ensemble, held in ensembles.items():
        _LOAD_FAILURES.labels(ensemble)
        _ACTIVE_VERSION_MISSING.labels(ensemble).set(not held)


def versions_routed(versions: Mapping[str, int]) -> None:
    """Set the version that this gateway asks for each ensemble's plain name."""
    _ROUTED_VERSION.clear()
    for ensemble, version in versions.items():
        _ROUTED_VERSION.labels(ensemble).set(version)


def rollouts_under_way(phases: Collection[tuple[str, str, str, float]]) -> None:
    """Set all rollouts under way: ensemble, strategy, phase, and when the phase began in Unix time. Of two that are
    alike, the earlier one counts."""
    _PHASE_STARTED.clear()
    for ensemble, strategy, phase, began in sorted(phases, key=lambda each: -each[3]):
        _PHASE_STARTED.labels(ensemble, strategy, phase).set(began)
