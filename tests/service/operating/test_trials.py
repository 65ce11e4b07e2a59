"""Canaries and a shadow over real engines: which version answers clients, and what the gates decide."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.load import Load
from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine

SWAP = "/v1/ensembles/intents/swap"
PATIENCE = 120
"""Seconds after which a rollout that does not move on fails a test."""


def start(service: Service, models: Models, members: dict[str, str], strategy: Any) -> Any:
    body = {"members": {name: models.uri(adapter) for name, adapter in members.items()}}
    response = service.post(SWAP, {**body, "strategy": strategy})
    assert response.status_code == 202, response.text
    return response.json()


def look(service: Service, rollout: Any) -> Any:
    return service.get(f"/v1/rollouts/{rollout['id']}").json()


def until_state(service: Service, rollout: Any, *states: str) -> Any:
    """Wait until the rollout is in one of the states; return it."""
    deadline = time.monotonic() + PATIENCE
    while (found := look(service, rollout))["state"] not in states:
        assert time.monotonic() < deadline, found
        assert found["state"] in ("preparing", "shadowing", "canarying", "committing"), found
        time.sleep(0.1)
    return found


def active(service: Service) -> int:
    return int(service.get("/v1/ensembles/intents").json()["active_version"])


@pytest.fixture(autouse=True)
def _known_contents(service: Service, models: Models) -> None:
    """Swap every member back to the adapter of its own name, in case another test has swapped one."""
    members = {name: models.uri(name) for name in ("a", "b", "c")}
    for ensemble in ("intents", "replies"):
        path = f"/v1/ensembles/{ensemble}/swap?wait=true"
        response = service.post(path, {"members": members})
        assert response.status_code == 200, response.text


def test_a_canary_under_load_is_promoted_and_no_answer_is_mixed(
    service: Service, models: Models
) -> None:
    before = active(service)
    strategy = {"kind": "canary", "share": 0.5, "gates": {"min_requests": 40}}
    load = Load(service.url, "intents", TEXTS, LABELS, models.references)
    with load:
        load.wait_for(20)
        rollout = start(service, models, {"a": "a2"}, strategy)
        ended = until_state(service, rollout, "draining", "done")
        load.wait_for(20)
    assert load.failures == []
    assert set(load.versions) >= {f"intents@{before}", f"intents@{rollout['to']}"}
    assert active(service) == rollout["to"]
    trial = ended["trial"]
    assert trial["candidate"]["requests"] >= 40
    assert trial["candidate"]["errors"] == 0
    assert 0 < trial["candidate"]["mean_ms"] < 60_000


def differing(models: Models, before: str, after: str) -> list[str]:
    """Return texts to which two adapters give different labels by PEFT."""

    def label(adapter: str, text: str) -> int:
        probabilities = models.references[models.digest(adapter)][text]
        return max(range(len(LABELS)), key=lambda index: probabilities[index])

    return [text for text in TEXTS if label(before, text) != label(after, text)]


def test_a_canary_that_disagrees_is_aborted_and_the_old_version_answers(
    service: Service, models: Models
) -> None:
    # Member a is asked alone, so that PEFT's references say which texts its contents differ on.
    new = next(name for name in ("b", "c", "a2", "b2") if differing(models, "a", name))
    before = active(service)
    gates = {"min_requests": 200, "min_agreement": 0.9}
    rollout = start(service, models, {"a": new}, {"kind": "canary", "share": 0.5, "gates": gates})
    until_state(service, rollout, "canarying")
    pinned = service.post("/v1/predict", {"model": f"intents@{rollout['to']}", "input": "x"})
    assert pinned.status_code == 200, pinned.text
    texts: Iterator[str] = itertools.cycle(differing(models, "a", new))
    answered = set()
    deadline = time.monotonic() + PATIENCE
    while look(service, rollout)["state"] == "canarying":
        assert time.monotonic() < deadline, look(service, rollout)
        response = service.post("/v1/predict", {"model": "intents/a", "input": next(texts)})
        assert response.status_code == 200, response.text
        answered.add(response.json()["model"])
    ended = look(service, rollout)
    assert ended["state"] == "aborted"
    assert "agrees with the active version on 0.00% of" in ended["reason"]
    assert answered == {f"intents@{before}/a", f"intents@{rollout['to']}/a"}
    assert active(service) == before
    model = {service.post("/v1/predict", {"model": "intents", "input": "x"}).json()["model"]}
    assert model == {f"intents@{before}"}


def test_a_shadow_sees_both_kinds_of_requests_and_clients_never_see_it(
    service: Service, models: Models
) -> None:
    """The same content again, so that all greedy answers agree."""
    body = {"model": "replies", "prompt": "where is my card", "max_tokens": 6, "temperature": 0}
    strategy = {"kind": "shadow", "share": 1.0, "gates": {"min_requests": 6, "min_agreement": 1}}
    response = service.post(
        "/v1/ensembles/replies/swap",
        {"members": {"a": models.uri("a")}, "strategy": strategy},
    )
    rollout = response.json()
    until_state(service, rollout, "shadowing")
    deadline = time.monotonic() + PATIENCE
    turn = 0
    while look(service, rollout)["state"] == "shadowing":
        assert time.monotonic() < deadline, look(service, rollout)
        model = ("replies", "replies/b")[turn % 2]
        streaming = {"stream": True} if turn % 3 == 0 else {}
        answer = service.post("/v1/completions", {**body, "model": model, **streaming})
        assert answer.status_code == 200, answer.text
        if not answer.headers["x-choir-model"].startswith(f"replies@{rollout['from']}"):
            assert look(service, rollout)["state"] != "shadowing"
        turn += 1
    ended = until_state(service, rollout, "draining", "done")
    assert ended["trial"]["agreement"] == 1.0
    assert ended["trial"]["candidate"]["errors"] == 0
    after = service.post("/v1/completions", body).json()
    assert after["model"] == f"replies@{rollout['to']}"
