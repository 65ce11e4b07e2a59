"""Error answers have the right status, OpenAI's shape and one sentence, and reveal no internals."""

import json
import logging

import pytest

from serve.logs.lines import Line
from tests.serve.gateway.conftest import Gateway, refused

JSON = {"content-type": "application/json"}
POSTS = [
    "/v1/predict",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
    "/v1/ensembles/intents/swap",
    "/v1/ensembles/intents/rollback",
]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
    ],
    ids=lambda body: body[:12],
)
async def test_a_body_that_is_not_a_json_object(gateway: Gateway, path: str, body: bytes) -> None:
    response = await gateway.http.post(path, content=body, headers=JSON)
    assert refused(response, 400)["type"] == "invalid_request_error"
    assert gateway.engines.calls == gateway.control.asked == []


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/predict/", "/docs", "/redoc", "/v1/ensembles/a/b"]
)
async def test_unknown_routes(gateway: Gateway, path: str) -> None:
    assert refused(await gateway.http.get(path), 404, path)["type"] == "not_found_error"
    refused(await gateway.http.post(path, json={}), 404, path)


async def test_a_method_that_a_route_does_not_take(gateway: Gateway) -> None:
    response = await gateway.http.get("/v1/predict")
    refused(response, 405, "POST")
    assert response.headers["allow"] == "POST"
    refused(await gateway.http.post("/v1/models"), 405, "GET")


async def test_a_malformed_query_parameter(gateway: Gateway) -> None:
    response = await gateway.http.post(
        "/v1/ensembles/intents/swap?wait=perhaps", json={"version": 2}
    )
    assert refused(response, 400, "wait")["param"] == "wait"


async def test_an_unexpected_error_is_logged_and_not_shown(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.engines.error = RuntimeError("a secret of the inside")
    with caplog.at_level(logging.ERROR, "choir.gateway"):
        response = await gateway.predict()
    error = refused(response, 500, response.headers["x-request-id"])
    assert error["type"] == "internal_error"
    assert "secret" not in response.text
    (record,) = caplog.records
    line = json.loads(Line("gateway-0", "json").format(record))
    assert "a secret of the inside" in line["trace"]
    assert line["request_id"] == response.headers["x-request-id"]
