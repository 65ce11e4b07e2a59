"""Prometheus text over all replicas, whose counters add up to the requests that were sent."""

import time
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.models import TEXTS
from tests.service.running import Service

pytestmark = pytest.mark.engine

LAG_SECONDS = 10

CONTRACT = {
    "choir_requests",
    "choir_request_seconds",
    "choir_time_to_first_token_seconds",
    "choir_member_agreement",
    "choir_disagreement",
    "choir_fusion_seconds",
    "choir_requests_in_flight",
    "choir_ensemble_info",
    "choir_adapter_info",
    "choir_active_version",
    "choir_rollouts",
    "choir_rollout_phase_seconds",
    "choir_generated_tokens",
    "choir_member_tokens",
}


def total(service: Service, sample: str, **labels: str) -> float:
    """Return the sum over all series of a sample that carry `labels`."""
    return sum(
        entry.value
        for family in text_string_to_metric_families(service.get("/metrics").text)
        for entry in family.samples
        if entry.name == sample and labels.items() <= entry.labels.items()
    )


def reaches(read: Callable[[], float], expected: float) -> float:
    """Return the value once it is `expected`, or after the lag that the contract allows."""
    deadline = time.monotonic() + LAG_SECONDS
    while (value := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    return value


def test_the_contracts_names_are_there_with_vllms_own(service: Service) -> None:
    service.post("/v1/predict", {"model": "intents", "input": TEXTS[0]})
    body = {"model": "replies/a", "prompt": "x", "max_tokens": 2, "stream": True}
    service.post("/v1/completions", body)
    service.post("/v1/ensembles/intents/rollback?wait=true", {})

    def missing() -> float:
        families = text_string_to_metric_families(service.get("/metrics").text)
        return len(CONTRACT - {family.name for family in families})

    assert reaches(missing, 0) == 0
    families = list(text_string_to_metric_families(service.get("/metrics").text))
    assert any(family.name.startswith("vllm:") for family in families)
    for family in families:
        assert all("replica" in sample.labels for sample in family.samples), family.name


def test_counters_add_up(service: Service) -> None:
    labels = {"ensemble": "intents", "route": "/v1/predict", "status": "200", "track": "stable"}

    def requests() -> float:
        return total(service, "choir_requests_total", **labels)

    def agreements() -> float:
        return total(service, "choir_member_agreement_total", ensemble="intents", member="a")

    time.sleep(LAG_SECONDS / 2)  # what earlier tests sent is pushed every few seconds
    before, agreed_before = requests(), agreements()
    for turn in range(40):
        body = {"model": "intents", "input": TEXTS[: turn % 3 + 1]}
        assert service.post("/v1/predict", body).status_code == 200
    inputs = sum(turn % 3 + 1 for turn in range(40))
    assert reaches(requests, before + 40) == before + 40
    assert reaches(agreements, agreed_before + inputs) == agreed_before + inputs


def test_refused_requests_count_without_making_up_label_values(service: Service) -> None:
    def refused() -> float:
        return total(service, "choir_requests_total", ensemble="", status="404")

    before = refused()
    service.post("/v1/predict", {"model": "somebody-unknown", "input": "x"})
    assert reaches(refused, before + 1) == before + 1
    assert "somebody-unknown" not in service.get("/metrics").text


def test_every_replica_reports_what_it_holds(service: Service) -> None:
    """Two engines, each with the active versions of both ensembles."""

    def engines() -> float:
        return len(
            {
                entry.labels["replica"]
                for family in text_string_to_metric_families(service.get("/metrics").text)
                for entry in family.samples
                if entry.name == "choir_ensemble_info" and entry.labels["ensemble"] == "replies"
            }
        )

    assert reaches(engines, 2) == 2
