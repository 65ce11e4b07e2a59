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
SLOW = frozenset({"ChoirSlowAnswers", "ChoirSlowFirstToken"})


def test_alerts_fire_by_their_causes_alone(
    service: Service, prometheus: Prometheus, models: Models
) -> None:
    def only(*alerts: str, beside: frozenset[str] = frozenset()) -> None:
        """Wait until these alerts fire, and no other but those `beside`."""
        expected = set(alerts)
        prometheus.wait_for(lambda: expected <= prometheus.firing() <= expected | beside, 90)

    intents = Bundle.open(models.bundle).ensemble("intents")
    swap(service, {"manifest": with_baseline(service, intents)})
    with predicting(service, TEXTS, 1), writing(service):
        prometheus.wait_for(lambda: prometheus.query('choir_drift_psi{figure="entropy"}'))
        only()  # so many texts at once take long
        calm = threading.Event()
        for _ in range(50):
            assert prometheus.firing() == set(), "nothing is wrong with a server under load"
            calm.wait(0.2)

    # A server that is as busy as it can be is slow too.
    with predicting(service, TEXTS, 6 * PLACES):
        only("ChoirQueueFull", beside=SLOW)
    only()

    with predicting(service, OTHERS, 1):
        only("ChoirDrift")
    with predicting(service, TEXTS, 1):
        only()

    engines = service.replicas("Engine")
    with predicting(service, TEXTS, 1), writing(service):
        with frozen(*engines):
            calm.wait(TIMEOUT - 2.5)  # the time that is measured
        only(*SLOW)
        with frozen(*engines):
            only("ChoirErrors", beside=SLOW)
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
    missing = ("ChoirLoadFailures", "ChoirVersionsDiffer")
    only(*missing, beside=frozenset({"ChoirLeaseLost"}))
    weights.write_bytes(sound)
    only()

    with frozen(*service.replicas("Controller")):
        only("ChoirDown")
    only()


def adapters_in(models: Models) -> set[Path]:
    return set((models.bundle / ".choir").rglob("adapter_model.safetensors"))
