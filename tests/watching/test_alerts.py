"""Every alert is caused on a whole server, which a real Prometheus scrapes; only what was caused fires."""

import threading
from pathlib import Path

import pytest

from serve.bundle import Bundle
from tests.service.models import Models
from tests.service.running import Service
from tests.watching.conftest import PLACES, TIMEOUT
from tests.watching.prometheus import Prometheus, needs_prometheus
from tests.watching.real import TEXTS, WORDS, frozen, predicting, swap, with_baseline, writing

pytestmark = [pytest.mark.engine, pytest.mark.slow, needs_prometheus]

OTHERS = [f"{' '.join(WORDS)} {word} {word} {word}" for word in WORDS]
"""Texts of another kind."""


def test_alerts_fire_by_their_causes_alone(
    service: Service, prometheus: Prometheus, models: Models
) -> None:
    def only(*alerts: str) -> None:
        """Wait until these alerts fire, and no other."""
        prometheus.wait_for(lambda: prometheus.firing() == set(alerts), 90)

    swap(
        service,
        {"manifest": with_baseline(service, Bundle.open(models.bundle).ensemble("intents"))},
    )
    drifted = 'choir_drift_psi{figure="entropy"}'
    seen: set[str] = set()
    with predicting(service, TEXTS), writing(service):
        prometheus.wait_for(lambda: prometheus.query(drifted))
        prometheus.wait_for(
            lambda: (
                seen.update(prometheus.firing())
                or prometheus.query(f"count_over_time({drifted}[20s]) > 10")
            )
        )
    assert seen == set(), "nothing is wrong with a server under load"

    with predicting(service, TEXTS, 6 * PLACES):
        only("ChoirQueueFull")
    only()

    with predicting(service, OTHERS):
        only("ChoirDrift")
    with predicting(service, TEXTS):
        only()

    engines = service.replicas("Engine")
    slow = {"ChoirSlowAnswers", "ChoirSlowFirstToken"}
    with predicting(service, TEXTS), writing(service):
        with frozen(*engines):
            threading.Event().wait(TIMEOUT - 2.5)  # the time that is measured
        only(*slow)
        with frozen(*engines):
            prometheus.wait_for(lambda: "ChoirErrors" in prometheus.firing())
            assert prometheus.firing() <= slow | {"ChoirErrors"}
        only()

    with frozen(engines[1]):
        swap(service, {"members": {"a": models.uri("a2")}}, wait=False)
        only("ChoirRolloutStuck")
    only()

    strategy = {"kind": "canary", "auto_promote": False}
    trial = swap(service, {"members": {"a": models.uri("a")}, "strategy": strategy}, wait=False)
    only("ChoirTrialUndecided")
    assert service.post(f"/v1/rollouts/{trial['id']}/abort", {}).status_code == 200
    only()

    before = adapters_in(models)
    with frozen(engines[1]):
        only("ChoirLeaseLost")
        swap(service, {"members": {"b": models.uri("b2")}})
        (weights,) = adapters_in(models) - before
        sound = weights.read_bytes()
        weights.chmod(0o644)
        weights.write_bytes(sound + b" ")
    prometheus.wait_for(lambda: {"ChoirLoadFailures", "ChoirVersionsDiffer"} <= prometheus.firing())
    assert prometheus.firing() <= {"ChoirLoadFailures", "ChoirVersionsDiffer", "ChoirLeaseLost"}
    weights.write_bytes(sound)
    only()

    with frozen(*service.replicas("Controller")):
        only("ChoirDown")
    only()


def adapters_in(models: Models) -> set[Path]:
    return set((models.bundle / ".choir").rglob("adapter_model.safetensors"))
