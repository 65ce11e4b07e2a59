"""Metrics of drift: how far the latest answers are from those to the validation rows, and which member decides them."""

from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import Counter, Gauge

from serve.metrics import REGISTRY

DRIFT_FIGURES = ("agreement", "entropy", "labels")

_DRIFT_PSI = Gauge(
    "choir_drift_psi",
    "Population stability index of the latest answers against the validation rows, by figure.",
    ["ensemble", "figure"],
    registry=REGISTRY,
)
_DRIFT_ANSWERS = Gauge(
    "choir_drift_answers",
    "Answers in the window that is compared with the validation rows.",
    ["ensemble"],
    registry=REGISTRY,
)
_CHANGED_ANSWERS = Counter(
    "choir_member_changed_answers_total",
    "Sampled answers, by whether the ensemble without this member would have answered differently.",
    ["ensemble", "member", "changed"],
    registry=REGISTRY,
)


def drift_seen(ensemble: str, answers: int, psi: Mapping[str, float]) -> None:
    """Set how many answers the window has, and the index of each figure. Replaces what was set before."""
    drift_forgotten(ensemble)
    _DRIFT_ANSWERS.labels(ensemble).set(answers)
    for figure, value in psi.items():
        _DRIFT_PSI.labels(ensemble, figure).set(value)


def drift_forgotten(ensemble: str) -> None:
    """Show no drift of the ensemble any more."""
    with suppress(KeyError):
        _DRIFT_ANSWERS.remove(ensemble)
    for figure in DRIFT_FIGURES:
        with suppress(KeyError):
            _DRIFT_PSI.remove(ensemble, figure)


def member_changed(ensemble: str, member: str, changed: int, answers: int) -> None:
    """Count sampled answers, of which `changed` would be others without the member."""
    for did, count in (("true", changed), ("false", answers - changed)):
        _CHANGED_ANSWERS.labels(ensemble, member, did).inc(count)
