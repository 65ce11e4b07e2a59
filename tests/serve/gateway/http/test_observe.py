"""The request id, the metrics and the log line of a request."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve import metrics
from serve.errors import Refusal
from serve.logs.lines import Line
from tests.serve.gateway.conftest import Gateway, Start
from tests.serve.gateway.fakes import listening

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples() -> Samples:
    """Return the metrics of this process, as a scraper reads them."""
    text = generate_latest(metrics.REGISTRY).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(before: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """Return the growth of a metric since `before`, by labels."""
    return {
        labels: value - before.get((sample, labels), 0)
        for (sample, labels), value in samples().items()
        if sample == name and value != before.get((sample, labels), 0)
    }


def series(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


@pytest.mark.parametrize("given", ["mine", "a b", "x" * 128, "~!{}"])
async def test_the_request_id_of_a_client_is_returned(gateway: Gateway, given: str) -> None:
    for path in ("/health", "/v1/nothing", "/v1/models/nobody"):
        response = await gateway.http.get(path, headers={"x-request-id": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"x" * 129, b"", b"a\tb", "ä".encode(), b" "])
async def test_a_malformed_request_id_is_replaced(gateway: Gateway, given: bytes) -> None:
    headers = {b"x-request-id": given}
    first = await gateway.http.get("/health", headers=headers)
    second = await gateway.http.get("/health", headers=headers)
    ids = {first.headers["x-request-id"], second.headers["x-request-id"]}
    assert len(ids) == 2
    assert all(len(each) == 32 and each.isalnum() for each in ids)


async def test_every_request_is_counted_once(gateway: Gateway) -> None:
    before = samples()
    for model in ("intents", "intents", "intents@2", "intents/a", "nobody"):
        await gateway.predict(model=model)
    gateway.engines.refusal = Refusal(400, "no")
    await gateway.predict()
    await gateway.http.get("/v1/ensembles/some-name")
    await gateway.http.get("/v1/models/replies@1/a")
    await gateway.http.get("/v1/made-up/by-the-client")
    await gateway.http.get("/v1/predict")
    expected = {
        series(ensemble="intents", route="/v1/predict", status="200", track="stable"): 3,
        series(ensemble="intents", route="/v1/predict", status="200", track="pinned"): 1,
        series(ensemble="intents", route="/v1/predict", status="400", track="stable"): 1,
        series(ensemble="", route="/v1/predict", status="404", track="stable"): 1,
        series(ensemble="", route="/v1/ensembles/{name}", status="404", track="stable"): 1,
        series(ensemble="", route="/v1/models/{model_id}", status="200", track="stable"): 1,
        series(ensemble="", route="", status="404", track="stable"): 1,
        series(ensemble="", route="/v1/predict", status="405", track="stable"): 1,
    }
    assert counted(before, "choir_requests_total") == expected
    assert counted(before, "choir_request_seconds_count") == {
        series(ensemble="intents", route="/v1/predict"): 5,
        series(ensemble="", route="/v1/predict"): 2,
        series(ensemble="", route="/v1/ensembles/{name}"): 1,
        series(ensemble="", route="/v1/models/{model_id}"): 1,
        series(ensemble="", route=""): 1,
    }


async def test_only_a_stream_has_a_first_token(gateway: Gateway) -> None:
    before = samples()
    for stream in (True, True, False):
        body = {"model": "replies", "prompt": "x", "stream": stream}
        await gateway.http.post("/v1/completions", json=body)
    first_tokens = counted(before, "choir_time_to_first_token_seconds_count")
    assert first_tokens == {series(ensemble="replies"): 2}


async def test_requests_in_flight_rise_and_fall(gateway: Gateway) -> None:
    before = samples()
    gateway.engines.stuck = asyncio.Event()
    asking = asyncio.create_task(gateway.predict())
    await gateway.engines.stuck.wait()
    assert counted(before, "choir_requests_in_flight") == {series(ensemble="intents"): 1}
    asking.cancel()
    await asyncio.wait([asking])
    assert counted(before, "choir_requests_in_flight") == {}


async def test_a_request_whose_client_left_has_its_own_status(gateway: Gateway) -> None:
    before = samples()
    gateway.engines.stuck = asyncio.Event()
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(
            client.post(f"{url}/v1/predict", json={"model": "intents", "input": "x"})
        )
        await gateway.engines.stuck.wait()
        asking.cancel()
        await asyncio.wait([asking])
    gone = series(ensemble="intents", route="/v1/predict", status="499", track="stable")
    assert counted(before, "choir_requests_total") == {gone: 1}


async def test_the_log_line_holds_nothing_private(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(inference_tokens=["token-of-ann"])
    body: dict[str, Any] = {"model": "intents", "input": "a private text"}
    headers = {"x-request-id": "mine", "authorization": "Bearer token-of-ann"}
    with caplog.at_level(logging.INFO, "choir.gateway"):
        await gateway.http.post("/v1/predict", json=body, headers=headers)
    (record,) = caplog.records
    line = json.loads(Line("gateway-0", "json").format(record))
    assert line.pop("ms") >= 0
    del line["time"]
    assert line == {
        "level": "info",
        "process": "gateway-0",
        "event": "request",
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/predict",
        "status": 200,
        "model": "intents@3",
        "version": 3,
    }
