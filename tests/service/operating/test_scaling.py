"""A server whose engines become more under load, by the sequences of its members."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.service.models import TEXTS, Models
from tests.service.running import Service, serving

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(900)]

PATIENCE = 400.0
FUSED = {"model": "replies", "fusion": {"method": "average"}, "max_tokens": 300, "ignore_eos": True}


def test_fused_requests_that_fill_an_engine_bring_another_one(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests of three members fill an engine of eight sequences. Counted as three, they would not."""
    monkeypatch.setenv("CHOIR_MAX_REPLICAS", "2")
    engine = '{"max_num_seqs": 8, "kv_cache_memory_bytes": 268435456}'
    with serving(
        models.bundle,
        *("--dtype", "float32", "--engine", engine, "--store", tmp_path / "store"),
        log=tmp_path / "serve.log",
    ) as service:
        assert len(service.replicas("Engine")) == 1
        stop = threading.Event()
        statuses: set[int] = set()
        clients = [
            threading.Thread(target=ask, args=(service, number, stop, statuses))
            for number in range(3)
        ]
        for client in clients:
            client.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while not any("engine-1 is ready" in line for line in service.console):
                assert time.monotonic() < deadline, "no second engine"
                time.sleep(0.5)
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert statuses == {200}
        assert len(service.replicas("Engine")) == 2


def ask(service: Service, number: int, stop: threading.Event, statuses: set[int]) -> None:
    turn = number
    while not stop.is_set():
        turn += 1
        body = {**FUSED, "prompt": f"{turn} {TEXTS[turn % len(TEXTS)]}"}
        try:
            statuses.add(service.post("/v1/completions", body).status_code)
        except httpx.HTTPError:
            statuses.add(0)
