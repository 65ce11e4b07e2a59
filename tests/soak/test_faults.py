"""kill -9 and SIGSTOP of every kind of process while a candidate is tried out or committed."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.docs.log_lines import line_with
from tests.service.load import Load
from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service, kill, serving

pytestmark = pytest.mark.soak

SWAP = "/v1/ensembles/intents/swap"
PATIENCE = 240
"""Seconds to wait for what should happen: a killed engine takes a minute or two to come back."""
AT_ONCE = 10
"""Seconds: less than Ray's three health checks, 5 apart."""
WAIT_TO_BE_TOLD = {"kind": "canary", "share": 0.5, "auto_promote": False}


@pytest.fixture(scope="module")
def running(models: Models) -> Iterator[Service]:
    """Two engines and two gateways with short leases, and nothing kept warm."""
    config = models.root / "faults.json"
    config.write_text(json.dumps({"lease_seconds": 3, "keep_warm": 0}))
    with serving(
        models.bundle,
        *("--replicas", "2", "--gateways", "2", "--dtype", "float32", "--config", config),
        *("--adapter-root", models.root / "adapters", "--store", models.root / "faults"),
        *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        log=models.root / "faults.log",
    ) as service:
        yield service


def until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition is true; return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
    return found


def insist(running: Service, method: str, path: str, body: Any = None) -> Any:
    """Return the answer of a process that is neither dead nor stopped; give the others up quickly."""

    def answer() -> Any:
        with contextlib.suppress(httpx.TransportError):
            response = httpx.request(method, running.url + path, json=body, timeout=4)
            if response.status_code < 500:
                return response.json()
        return None

    return until(answer)


def ensemble(running: Service) -> Any:
    return insist(running, "GET", "/v1/ensembles/intents")


def until_state(running: Service, rollout: Any, *states: str) -> Any:
    def reached() -> Any:
        found = insist(running, "GET", f"/v1/rollouts/{rollout['id']}")
        return found if found["state"] in states else None

    return until(reached)


def try_out(running: Service, models: Models) -> Any:
    """Start a canary with new content for member a that waits for a decision."""
    adapter = "a2" if models.digest("a") in ensemble(running)["digests"] else "a"
    body = {"members": {"a": models.uri(adapter)}, "strategy": WAIT_TO_BE_TOLD}
    rollout = insist(running, "POST", SWAP, body)
    return until_state(running, rollout, "canarying")


def two(running: Service, kind: str) -> list[psutil.Process]:
    return until(lambda: found if len(found := running.replicas(kind)) == 2 else None)


def hear(running: Service, words: str) -> None:
    """Wait until the console has shown the documented line with these words."""
    until(lambda: line_with(words).search("\n".join(running.console)))


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    family = [process, *process.children(recursive=True)]
    for each in family:
        each.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in family:
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGCONT)


def check_that_all_agree(running: Service, version: int) -> None:
    """Check that every request is answered, and by that version."""
    for turn in range(40):
        body = {"model": "intents", "input": TEXTS[turn % len(TEXTS)]}
        response = running.post("/v1/predict", body)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == f"intents@{version}"


@pytest.mark.parametrize("kind", ["Gateway", "Engine"])
def test_who_is_stopped_neither_blocks_a_commit_nor_answers_with_what_is_unloaded(
    running: Service, models: Models, kind: str
) -> None:
    rollout = try_out(running, models)
    with stopped(two(running, kind)[0]):
        insist(running, "POST", f"/v1/rollouts/{rollout['id']}/promote", {})
        until_state(running, rollout, "draining", "done")
    until(lambda: running.get("/ready").status_code == 200)
    check_that_all_agree(running, rollout["to"])


@pytest.mark.parametrize("kind", ["Controller", "Gateway", "Engine"])
def test_who_is_killed_leaves_a_trial_that_goes_on(
    running: Service, models: Models, kind: str
) -> None:
    rollout = try_out(running, models)
    victim = running.replicas(kind)[0]
    with Load(running.url, "intents", TEXTS, LABELS, models.references) as load:
        load.wait_for(20)
        kill(victim)
        load.wait_for(100)
        # A controller that has just started knows the counts with the gateways' next reports.
        until(lambda: until_state(running, rollout, "canarying")["trial"]["candidate"]["requests"])
        insist(running, "POST", f"/v1/rollouts/{rollout['id']}/promote", {})
        until_state(running, rollout, "draining", "done")
        load.wait_for(20)
    # A gateway takes the requests that it works on with it, and nobody else loses any.
    assert len(load.failures) <= (load.clients if kind == "Gateway" else 0), load.failures
    if kind != "Controller":
        two(running, kind)
    hear(running, "the controller restarted" if kind == "Controller" else "is silent")
    check_that_all_agree(running, rollout["to"])


def test_an_engine_whose_core_dies_is_replaced_at_once_and_no_request_is_lost(
    running: Service, models: Models
) -> None:
    engine = two(running, "Engine")[0]
    (core,) = (
        each for each in engine.children(recursive=True) if "EngineCore" in " ".join(each.cmdline())
    )
    with Load(running.url, "intents", TEXTS, LABELS, models.references) as load:
        load.wait_for(20)
        core.kill()
        _, alive = psutil.wait_procs([engine], timeout=AT_ONCE)
        assert not alive, "the replica goes on without its core"
        load.wait_for(200)
    assert load.failures == []
    hear(running, "vLLM's core is dead")
    two(running, "Engine")
    until(lambda: running.get("/ready").status_code == 200)
    check_that_all_agree(running, ensemble(running)["active_version"])


@pytest.mark.parametrize("kind", ["Controller", "Engine"])
def test_who_is_killed_while_a_candidate_is_prepared_leaves_one_version_active(
    running: Service, models: Models, kind: str
) -> None:
    two(running, "Engine")
    before = ensemble(running)
    adapter = "a2" if models.digest("a") in before["digests"] else "a"
    engine = two(running, "Engine")[0]
    with stopped(engine):  # so that it is not prepared at once
        rollout = insist(running, "POST", SWAP, {"members": {"a": models.uri(adapter)}})
        kill(engine if kind == "Engine" else running.replicas("Controller")[0])
    ended = until_state(running, rollout, "draining", "done", "aborted")
    expected = before["active_version"] if ended["state"] == "aborted" else rollout["to"]
    two(running, "Engine")
    until(lambda: running.get("/ready").status_code == 200)
    check_that_all_agree(running, expected)
