"""Limits on the size of a body and on the requests in progress."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from time import perf_counter

import pytest

from serve.gateway.app import INFERENCE_PATHS
from serve.gateway.http import body
from tests.serve.fakes import until
from tests.serve.gateway.conftest import Start, refused
from tests.serve.gateway.fakes import desired, ensemble, held

SMALL = {"max_body_mb": 0.001}
"""1,000 bytes."""
PATHS = ["/v1/predict", "/v1/completions", "/v1/ensembles/intents/swap"]


def body_of(size: int) -> bytes:
    start, end = b'{"model": "intents", "input": "', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 100):
        yield body[start : start + 100]


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_over_the_limit_is_a_413(start: Start, path: str) -> None:
    gateway = await start(**SMALL)
    headers = {"content-type": "application/json"}
    announced = await gateway.http.post(path, content=body_of(1001), headers=headers)
    refused(announced, 413, "0.001 MB")
    chunked = await gateway.http.post(path, content=chunks(body_of(1001)), headers=headers)
    refused(chunked, 413, "0.001 MB")
    assert gateway.engines.calls == gateway.control.asked == []


async def test_a_body_at_the_limit_is_taken(start: Start) -> None:
    gateway = await start(**SMALL)
    for content in (body_of(1000), chunks(body_of(1000))):
        assert (await gateway.http.post("/v1/predict", content=content)).status_code == 200


async def test_nothing_is_read_beyond_the_limit(start: Start) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100

    gateway = await start(**SMALL)
    refused(await gateway.http.post("/v1/predict", content=endless()), 413)


async def test_the_default_is_32_mb(start: Start) -> None:
    gateway = await start()
    refused(await gateway.http.post("/v1/predict", content=body_of(32_000_001)), 413, "32 MB")


async def test_one_request_too_many_is_a_429_until_another_ends(start: Start) -> None:
    gateway = await start(max_in_flight=2)
    gateway.engines.stuck = asyncio.Event()
    running = []
    for _ in range(2):
        running.append(asyncio.create_task(gateway.predict()))
        await gateway.engines.stuck.wait()
        gateway.engines.stuck.clear()
    for path in INFERENCE_PATHS:
        full = await gateway.http.post(path, json={"model": "intents", "input": "x"})
        refused(full, 429, "2 requests")
        assert full.headers["retry-after"] == "1"
    assert (await gateway.http.get("/v1/models")).status_code == 200
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    gateway.engines.stuck = None
    assert (await gateway.predict()).status_code == 200


async def test_requests_for_on_demand_ensembles_leave_places_for_the_others(start: Start) -> None:
    cold = [replace(held(ensemble(name)), on_demand=True) for name in ("cold", "cool", "new")]
    gateway = await start(desired(held(ensemble()), *cold), engine={"max_num_seqs": 16})
    gateway.engines.stuck = asyncio.Event()
    running = []
    for model in ("cold", "cold", "cool", "cool@3"):
        running.append(asyncio.create_task(gateway.predict(model=model)))
        await gateway.engines.stuck.wait()
        gateway.engines.stuck.clear()
    async with asyncio.timeout(20):
        full, new = [await gateway.predict(model=model) for model in ("cold", "new")]
    refused(full, 429, "cold is loaded on demand, and as many requests as may already wait for it")
    assert full.headers["retry-after"] == "1"
    refused(new, 429, "new is loaded on demand, and as many requests as may already wait for such")
    running.append(asyncio.create_task(gateway.predict()))
    await gateway.engines.stuck.wait()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    gateway.engines.stuck = None
    assert (await gateway.predict(model="new")).status_code == 200


async def test_a_body_that_trickles_in_is_given_up(start: Start) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0)

    gateway = await start(body_timeout_seconds=0.5)
    refused(await gateway.http.post("/v1/predict", content=endless()), 408, "did not arrive")
    assert (await gateway.predict()).status_code == 200


@pytest.mark.parametrize("text", [b"1" * 299 + b" ", b"e00 ", b"e+00", b"E99"])
def test_the_search_for_infinite_numbers_takes_linear_time(text: bytes) -> None:
    """The texts look like an infinite number at every position."""
    raw = b'{"model": "intents", "input": "' + text * (4_000_000 // len(text)) + b'"}'
    started = perf_counter()
    assert not body._may_hold_infinity(raw)
    assert perf_counter() - started < 1
    for number in (b"1e999", b"1E+4000", b"-" + b"9" * 400):
        assert body._may_hold_infinity(b'{"input": ' + number + b"}")


async def test_a_full_server_answers_429_at_once_and_says_when_to_ask_again(start: Start) -> None:
    gateway = await start(engine={"max_num_seqs": 4}, queue=0)
    gateway.engines.stuck = asyncio.Event()
    running = [asyncio.create_task(gateway.predict()) for _ in range(3)]
    await until(lambda: len(gateway.engines.calls) == 2)
    error = refused(await gateway.predict(), 429, "The engines are busy, and 1 other requests")
    assert error["code"] == "queue_full"
    full = await gateway.http.post("/v1/completions", json={"model": "intents", "prompt": "x"})
    assert full.headers["retry-after"] == "1"
    other = asyncio.create_task(
        gateway.http.post("/v1/completions", json={"model": "replies", "prompt": "x"})
    )
    await asyncio.sleep(0)
    for task in running:
        task.cancel()
    gateway.engines.stuck = None
    assert (await other).status_code == 200
    await asyncio.wait(running)
    assert (await gateway.predict()).status_code == 200


async def test_a_second_engine_doubles_the_places_and_gateways_share_them(start: Start) -> None:
    gateway = await start(
        desired(held(ensemble()), ready_engines=2), engine={"max_num_seqs": 8}, gateways=4
    )
    gateway.engines.stuck = asyncio.Event()
    running = [asyncio.create_task(gateway.predict()) for _ in range(3)]
    await until(lambda: len(gateway.engines.calls) == 2)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert len(gateway.engines.calls) == 2
