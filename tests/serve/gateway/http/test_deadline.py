"""`X-Request-Timeout`: what it may be, what is told to the engine, and what the client gets when its time is over."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from serve.engine.interface import DEADLINE
from serve.gateway.app import INFERENCE_PATHS
from serve.protocol.figures import Tally
from tests.serve.fakes import until
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.dispatch.test_trials import figures, trying

PATHS = INFERENCE_PATHS
BODY = {"model": "intents", "input": "x"}
OF_INPUTS = ("/v1/predict", "/classify", "/v1/embeddings")


def within(seconds: float | str) -> dict[str, str]:
    return {"x-request-timeout": str(seconds)}


async def test_what_is_no_number_of_seconds_is_a_400(gateway: Gateway) -> None:
    for path in PATHS:
        for given in ("0", "-1", "0.0", "nan", "inf", "1e3", "soon", "", "1_0", " "):
            answer = await gateway.http.post(path, json=BODY, headers=within(given))
            error = refused(answer, 400, "X-Request-Timeout must be a number of seconds above 0")
            assert error["param"] == "X-Request-Timeout"
    assert gateway.engines.calls == []


@pytest.mark.parametrize("path", PATHS)
async def test_the_engine_is_told_how_much_time_is_left(gateway: Gateway, path: str) -> None:
    body = BODY if path in OF_INPUTS else {"model": "replies", "prompt": "x"}
    assert (await gateway.http.post(path, json=body, headers=within(60))).status_code == 200
    assert (await gateway.http.post(path, json=body)).status_code == 200
    timed, free = gateway.engines.calls
    assert timed.seconds_left is not None
    assert 50 < timed.seconds_left < 60
    assert free.seconds_left is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_is_late_is_a_504_and_its_work_ends(
    gateway: Gateway, path: str, stream: bool
) -> None:
    gateway.engines.stuck = asyncio.Event()
    body = {"model": "replies", "prompt": "x", "stream": stream}
    for seconds in (0.05, 0.5, 5):  # a busy machine may need longer to reach the engine
        answer = await gateway.http.post(
            path, json=BODY if path in OF_INPUTS else body, headers=within(seconds)
        )
        if gateway.engines.calls:
            break
    error = refused(answer, 504, "X-Request-Timeout")
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_passed")
    assert gateway.engines.ended.is_set()


async def test_a_request_whose_time_is_over_while_it_waits_is_never_started(start: Start) -> None:
    gateway = await start(engine={"max_num_seqs": 2})
    gateway.engines.stuck = asyncio.Event()
    first = asyncio.create_task(gateway.predict())
    await gateway.engines.stuck.wait()
    late = await gateway.http.post("/v1/predict", json=BODY, headers=within(0.05))
    refused(late, 504, "X-Request-Timeout")
    first.cancel()
    await asyncio.wait([first])
    gateway.engines.stuck = None
    assert (await gateway.predict()).status_code == 200
    assert len(gateway.engines.calls) == 2


async def test_a_client_that_leaves_the_queue_is_never_started(start: Start) -> None:
    gateway = await start(engine={"max_num_seqs": 2})
    gateway.engines.stuck = asyncio.Event()
    running, waiting = (asyncio.create_task(gateway.predict()) for _ in range(2))
    await gateway.engines.stuck.wait()
    for task in (waiting, running):
        task.cancel()
        await asyncio.wait([task])
    gateway.engines.stuck = None
    assert (await gateway.predict()).status_code == 200
    assert len(gateway.engines.calls) == 2


async def test_a_stream_whose_time_is_over_ends_with_an_error_event(gateway: Gateway) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()

    gateway.engines.parts = parts
    body = {"model": "replies", "prompt": "x", "stream": True}
    answer = await gateway.http.post("/v1/completions", json=body, headers=within(1))
    first, error, rest = answer.text.split("\n\n")
    assert (answer.status_code, first, rest) == (200, "data: 1", "")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_passed"
    await until(gateway.engines.ended.is_set)


@pytest.mark.parametrize("by_engine", [True, False])
async def test_a_client_without_patience_is_no_failure_of_a_canary(
    start: Start, by_engine: bool
) -> None:
    gateway = await start(trying(share=1))
    if by_engine:
        gateway.engines.refusal = DEADLINE
    else:
        gateway.engines.stuck = asyncio.Event()
    refused(await gateway.http.post("/v1/predict", json=BODY, headers=within(0.05)), 504)
    assert figures(gateway).candidate == Tally()


async def test_the_schema_has_the_header(gateway: Gateway) -> None:
    paths = (await gateway.http.get("/openapi.json")).json()["paths"]
    for path in PATHS:
        names = [each["name"] for each in paths[path]["post"]["parameters"]]
        assert "X-Request-Timeout" in names
        assert "504" in paths[path]["post"]["responses"]
