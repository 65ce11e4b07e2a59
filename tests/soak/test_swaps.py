"""Minutes of swaps: under load on one and two engines, and two hundred in a row with an eye on memory."""

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.service.load import Load, wrong_members
from tests.service.models import LABELS, TEXTS, Models
from tests.service.running import Service, serving

pytestmark = pytest.mark.soak

LOAD_SECONDS = 70
SWAPS = 200
MEMORY_GROWTH = 1.05
"""What Python's allocator and Ray's bookkeeping may keep; 200 leaked adapters would be far more."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one-engine", "two-engines"])
def running(models: Models, request: pytest.FixtureRequest) -> Iterator[Service]:
    with serving(
        models.bundle,
        *("--replicas", str(request.param), "--gateways", str(request.param)),
        *("--dtype", "float32", "--adapter-root", models.root / "adapters"),
        *("--store", models.root / f"store-{request.param}"),
        *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        log=models.root / f"soak-{request.param}.log",
    ) as service:
        yield service


def swap(service: Service, models: Models, members: dict[str, str]) -> dict[str, object]:
    body = {"members": {name: models.uri(adapter) for name, adapter in members.items()}}
    response = service.post("/v1/ensembles/intents/swap?wait=true", body)
    assert response.status_code == 200, response.text
    return response.json()


def predict(service: Service) -> dict[str, object]:
    body = {"model": "intents", "input": TEXTS[0], "return_members": True}
    response = service.post("/v1/predict", body)
    assert response.status_code == 200, response.text
    return response.json()


def test_swaps_and_rollbacks_under_load(running: Service, models: Models) -> None:
    turns = [{"a": "a2"}, {"b": "b2"}, {"a": "a"}, {"b": "b", "c": "a2"}, {"c": "c"}]
    rollouts = 0
    with Load(running.url, "intents", TEXTS, LABELS, models.references) as load:
        end = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < end:
            load.wait_for(20)
            to = swap(running, models, turns[rollouts % len(turns)])["to"]
            assert predict(running)["model"] == f"intents@{to}"
            load.wait_for(20)
            back = running.post("/v1/ensembles/intents/rollback?wait=true", {})
            assert back.status_code == 200, back.text
            assert predict(running)["model"] == f"intents@{back.json()['to']}"
            rollouts += 2
    print(f"\n{load.requests} requests, {rollouts} rollouts, {len(load.failures)} failures")
    assert load.failures == []
    assert len(load.versions) > 3


def test_two_hundred_swaps_leave_slots_and_memory_as_they_were(
    running: Service, models: Models
) -> None:
    def engine_memory() -> int:
        """Return the bytes of the server's processes that belong to no other process."""
        root = psutil.Process(running.process.pid)
        family = [root, *root.children(recursive=True)]
        return sum(process.memory_full_info().uss for process in family)

    def adapters() -> set[str]:
        return {
            line.rsplit(" ", 1)[0]
            for line in running.get("/metrics").text.splitlines()
            if line.startswith("choir_adapter_info")
        }

    for adapter in ("a2", "a", "a2", "a"):  # settles caches: both contents were loaded
        swap(running, models, {"a": adapter})
    time.sleep(10)  # the metrics' lag
    memory, loaded = engine_memory(), adapters()
    for turn in range(SWAPS):
        adapter = "a2" if turn % 2 == 0 else "a"
        to = swap(running, models, {"a": adapter})["to"]
        answer = predict(running)
        assert answer["model"] == f"intents@{to}"
        (row,) = answer["data"]  # type: ignore[misc]
        assert row["members"][0]["adapters"][0]["digest"] == models.digest(adapter)
        assert wrong_members(row, TEXTS[0], LABELS, models.references) is None
    time.sleep(10)
    grown = engine_memory()
    print(f"\n{SWAPS} swaps: {memory / 1e6:.0f} MB before, {grown / 1e6:.0f} MB after")
    assert adapters() == loaded
    assert grown <= memory * MEMORY_GROWTH
