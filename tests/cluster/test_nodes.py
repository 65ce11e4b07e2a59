"""The application of `deployments/serve.yaml` on three nodes with two engines and two gateways, under steady load.

Whatever happens to a node, the controller or the settings, no request of the Python client fails."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.pack import pack
from tests.cluster.running import Asked, Nodes, nodes, until
from tests.serve import tiny

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(3000)]

CLIENTS = 4
MOST_RETRIED = 0.01
BEFORE, AFTER = 30, 100
"""Requests before and after what happens, at least."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("cluster")
    base = tiny.causal_base(root / "base")
    adapters = {
        name: tiny.lora(base, root / name, seed=seed, rank=8) for seed, name in enumerate("ab", 1)
    }
    bundle = pack(
        str(base),
        adapters,
        root / "bundle",
        task="classification",
        fusion="average",
        labels=["card", "transfer", "cancel"],
        name="intents",
    )
    return {
        "bundles": [str(bundle.path)],
        "store": str(root / "store"),
        "shared_store": True,
        "replicas": 2,
        "gateways": 2,
        "lease_seconds": 3,
        "dtype": "float32",
        "engine": {"kv_cache_memory_bytes": 1 << 28},
    }


@pytest.fixture(scope="module")
def cluster(settings: dict[str, Any]) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # paths of sockets must be short
    try:
        with nodes(folder, workers=2, options={}) as running:
            running.deploy(settings)
            until(running.ready)
            until(lambda: len(running.engines()) == 2)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def load(cluster: Nodes) -> Iterator[Asked]:
    """Load that begins before what happens in this block, and goes on after it. No request of it fails, and at most one
    in a hundred is sent twice."""
    clients = Asked(
        *("tests.cluster.load", cluster.url, "intents", CLIENTS),
        log=cluster.folder / "load.log",
        env=dict(os.environ),
    )
    try:
        until(lambda: clients.ask("?")["requests"] >= BEFORE)
        yield clients
        so_far = clients.ask("?")["requests"]
        until(lambda: clients.ask("?")["requests"] >= so_far + AFTER)
        figures = clients.ask("?")
    finally:
        clients.end()
    print(
        f"{figures['requests']} requests, {figures['retried']} sent again, longest {figures['longest']:.1f} s",
        *set(figures["again"]),
        sep="\n  ",
    )
    assert figures["failures"] == []
    assert figures["retried"] <= max(1, MOST_RETRIED * figures["requests"]), figures["again"]


def test_engines_and_gateways_are_spread_over_nodes(cluster: Nodes) -> None:
    for kind in ("Engine", "Gateway"):
        places = {cluster.node_of(each) for each in cluster.replicas(kind)}
        assert len(places) == 2, f"one node's end must not take every {kind.lower()}"


def test_an_engines_threads_follow_from_the_machine_that_it_runs_on(cluster: Nodes) -> None:
    """Two engines on three nodes: each has the node to itself."""
    wanted = str(max(1, (os.cpu_count() or 1) - 1))
    for engine in cluster.replicas("Engine"):
        cores = [
            each
            for each in engine.children(recursive=True)
            if "EngineCore" in " ".join(each.cmdline())
        ]
        assert [core.environ()["OMP_NUM_THREADS"] for core in cores] == [wanted]


def test_requests_go_on_without_the_controller(cluster: Nodes) -> None:
    (controller,) = cluster.replicas("Controller")
    with load(cluster):
        controller.kill()
        until(lambda: (found := cluster.replicas("Controller")) and found[0].pid != controller.pid)
        until(lambda: cluster.ensemble() is not None)


def test_a_node_that_dies_costs_no_request_and_is_made_up_for(cluster: Nodes) -> None:
    places = [cluster.node_of(each) for each in cluster.replicas("Engine")]
    victim = next(raylet for raylet in places if raylet != cluster.head)
    with load(cluster):
        began = time.monotonic()
        cluster.process.ask(f"kill {victim}")
        cluster.workers.remove(victim)
        until(lambda: len(cluster.replicas("Engine")) == 2)
        until(lambda: len(cluster.replicas("Gateway")) == 2)
        until(lambda: len(cluster.engines()) == 2)
        print(f"Two engines and two gateways again after {time.monotonic() - began:.0f} s.")


def test_a_node_that_is_added_costs_no_request(cluster: Nodes) -> None:
    with load(cluster):
        cluster.workers.append(cluster.process.ask("add")["added"])
    assert cluster.ready()


def test_new_settings_are_rolled_out_without_a_failed_request(
    cluster: Nodes, settings: dict[str, Any]
) -> None:
    body = {"model": "intents", "input": ["a", "b", "c"]}
    assert httpx.post(f"{cluster.url}/v1/predict", json=body, timeout=60).status_code == 200

    def refused() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(f"{cluster.url}/v1/predict", json=body, timeout=60).status_code == 400
        return False

    with load(cluster):
        began = time.monotonic()
        cluster.deploy(settings | {"max_inputs": 2})
        until(lambda: cluster.status()["status"] == "DEPLOYING")
        until(lambda: cluster.status()["status"] == "RUNNING")
        print(f"The new settings are everywhere after {time.monotonic() - began:.0f} s.")
    assert all(refused() for _ in range(8)), "every gateway has the new settings"
