"""Tokens, hosts and origins."""

from typing import Any

import httpx
import pytest

from serve.bearer import hashed
from serve.gateway.app import INFERENCE_PATHS
from serve.logs.lines import Line
from tests.serve.gateway.conftest import Gateway, Start, refused

OPEN = ["/health", "/ready", "/metrics", "/version", "/openapi.json", "/"]
READS = ["/v1/models", "/v1/models/intents", "/v1/ensembles", "/v1/rollouts", "/v1/rollouts/r1"]
ADMIN = [
    "/v1/ensembles/intents/swap",
    "/v1/ensembles/intents/rollback",
    "/v1/rollouts/r1/promote",
    "/v1/rollouts/r1/abort",
]
TOKENS: dict[str, Any] = {"admin_token": "boss", "inference_tokens": ["ann", "bob"]}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def swap(gateway: Gateway, **headers: str) -> httpx.Response:
    body = {"members": {"a": "file:///new"}}
    return await gateway.http.post("/v1/ensembles/intents/swap", json=body, headers=headers)


@pytest.mark.parametrize("path", OPEN)
async def test_public_routes_need_no_token(start: Start, path: str) -> None:
    assert (await (await start(**TOKENS)).http.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("eve"), 401),
        (bearer(""), 401),
        ({"authorization": "Bearer ä"}, 401),
        ({"authorization": "Basic ann"}, 401),
        ({"authorization": "ann"}, 401),
        (bearer("ann"), 200),
        (bearer("bob"), 200),
        ({"authorization": "bearer ann"}, 200),
        (bearer("boss"), 200),
    ],
)
async def test_inference_routes_need_an_inference_token(
    start: Start, headers: dict[str, str], status: int
) -> None:
    gateway = await start(**TOKENS)
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    body = {"model": "intents", "input": "x"}
    for path in INFERENCE_PATHS:
        response = await gateway.http.post(path, json=body, headers=encoded)
        assert response.status_code == status
        if status == 401:
            assert refused(response, 401)["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
    for path in READS:
        assert (await gateway.http.get(path, headers=encoded)).status_code == status


async def test_a_token_is_checked_before_the_body_is_read(start: Start) -> None:
    async def endless() -> Any:
        yield b"{"
        raise AssertionError("the body was read on")

    gateway = await start(**TOKENS)
    refused(await gateway.http.post("/v1/predict", content=endless()), 401)


async def test_without_inference_tokens_inference_is_open(start: Start) -> None:
    gateway = await start(admin_token="boss")
    for headers in ({}, bearer("unused")):
        body = {"model": "intents", "input": "x"}
        response = await gateway.http.post("/v1/predict", json=body, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("path", ADMIN)
async def test_admin_routes_need_the_admin_token_if_there_is_one(start: Start, path: str) -> None:
    gateway = await start(**TOKENS)
    for headers in ({}, bearer("eve"), bearer("bos"), bearer("bosss")):
        refused(await gateway.http.post(path, json={}, headers=headers), 401)
    refused(
        await gateway.http.post(path, json={}, headers=bearer("ann")), 403, "needs the role admin"
    )
    assert gateway.control.asked == []
    answered = await gateway.http.post(path, json={}, headers=bearer("boss"))
    assert answered.status_code not in (401, 403)


async def test_on_loopback_an_admin_needs_no_token(gateway: Gateway) -> None:
    assert (await swap(gateway)).status_code == 202


@pytest.mark.parametrize("path", ADMIN)
async def test_beyond_loopback_without_a_token_there_are_no_admin_routes(
    start: Start, path: str
) -> None:
    gateway = await start(host="0.0.0.0", insecure=True)
    refused(await gateway.http.post(path, json={}), 404, "CHOIR_ADMIN_TOKEN")
    assert gateway.control.asked == []
    assert (await gateway.predict()).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 202),
        ("localhost:8000", 202),
        ("LOCALHOST", 202),
        ("[::1]:8000", 202),
        ("choir.example:8000", 202),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("choir.example.evil.example", 403),
        ("10.0.0.1:8000", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
async def test_hosts_on_loopback(start: Start, host: str, status: int) -> None:
    gateway = await start(allowed_hosts=["Choir.Example"])
    assert (await swap(gateway, host=host)).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("10.0.0.1:8000", 202), ("localhost", 202), ("evil.example", 403), ("choir.example", 202)],
)
async def test_the_host_header_of_a_server_on_all_interfaces(
    start: Start, host: str, status: int
) -> None:
    gateway = await start(host="0.0.0.0", admin_token="boss", allowed_hosts=["choir.example"])
    assert (await swap(gateway, host=host, **bearer("boss"))).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 202),
        ("https://choir.example", 202),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost:8000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
async def test_only_allowed_origins_may_use_admin_routes(
    start: Start, origin: str, status: int
) -> None:
    gateway = await start(allowed_hosts=["choir.example"])
    response = await swap(gateway, origin=origin)
    assert response.status_code == status
    if status == 403:
        refused(response, 403, "origin")
        assert gateway.control.asked == []


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_a_form_on_a_foreign_page_cannot_swap(gateway: Gateway, content_type: str) -> None:
    for path in ADMIN:
        response = await gateway.http.post(
            path, content=b'{"version": 2}', headers={"content-type": content_type}
        )
        refused(response, 400, "application/json")
    assert gateway.control.asked == []


async def test_the_content_type_may_name_a_charset(gateway: Gateway) -> None:
    response = await gateway.http.post(
        "/v1/ensembles/intents/rollback",
        content=b"{}",
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert response.status_code == 202


NAMED = [
    {"name": "dash", "role": "read", "sha256": hashed("d")},
    {"name": "ann", "role": "predict", "sha256": hashed("a")},
    {"name": "ops", "role": "admin", "sha256": hashed("o")},
]


@pytest.mark.parametrize(
    ("secret", "reads", "predicts", "swaps"),
    [("d", 200, 403, 403), ("a", 200, 200, 403), ("o", 200, 200, 202), ("x", 401, 401, 401)],
)
async def test_a_named_token_may_what_its_role_says(
    start: Start, secret: str, reads: int, predicts: int, swaps: int
) -> None:
    gateway = await start(tokens=NAMED)
    for path in READS:
        assert (await gateway.http.get(path, headers=bearer(secret))).status_code == reads
    for path in INFERENCE_PATHS:
        body = {"model": "intents", "input": "x"}
        answer = await gateway.http.post(path, json=body, headers=bearer(secret))
        assert answer.status_code == predicts
    answer = await swap(gateway, **bearer(secret))
    assert answer.status_code == swaps
    if swaps == 403:
        assert "needs the role admin" in refused(answer, 403)["message"]
    asked = [each[0] for each in gateway.control.asked]
    assert ("swap" in asked) == (swaps == 202)


async def test_the_audit_names_the_token_that_was_used(start: Start) -> None:
    gateway = await start(tokens=NAMED)
    await swap(gateway, **bearer("o"))
    assert "ops, from 127.0.0.1" in gateway.control.asked[-1]


async def test_the_audit_says_that_a_token_had_no_name_or_that_there_was_none(start: Start) -> None:
    closed = await start(admin_token="hunter2")
    await swap(closed, **bearer("hunter2"))
    assert "admin token, from 127.0.0.1" in closed.control.asked[-1]
    open_to_all = await start()
    await swap(open_to_all)
    assert "no token, from 127.0.0.1" in open_to_all.control.asked[-1]


async def test_tokens_are_neither_logged_nor_answered(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(admin_token="hunter2", inference_tokens=["hunter3"])
    with caplog.at_level("DEBUG"):
        answers = [
            await swap(gateway, **bearer("hunter2")),
            await swap(gateway, **bearer("hunter3")),
            await gateway.predict(),
            await gateway.http.get("/v1/models", headers=bearer("hunter4")),
            await gateway.http.get("/metrics"),
            await gateway.http.get("/openapi.json"),
        ]
    written = "".join(map(Line("gateway-0", "json").format, caplog.records))
    assert "/v1/predict" in written
    assert "hunter" not in written
    assert all("hunter" not in answer.text + str(answer.headers) for answer in answers)
