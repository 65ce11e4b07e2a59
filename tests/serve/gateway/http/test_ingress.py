"""The middleware in front of Ray Serve's own HTTP server."""

import httpx
import pytest
from ray.serve._private.http_util import _apply_middlewares, configure_http_middlewares
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve.gateway.http.ingress import Ingress, middlewares
from serve.gateway.http.observe import Observer
from serve.ray_options import INGRESS
from tests.serve.gateway.conftest import refused


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    answer = {"path": request.url.path, "headers": dict(request.headers)}
    await JSONResponse(answer)(scope, receive, send)


@pytest.fixture
def http() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=Ingress(echo))
    return httpx.AsyncClient(transport=transport, base_url="http://choir")


@pytest.mark.parametrize(
    "header",
    [
        "x-request-timeout-seconds",
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
    ],
)
async def test_what_ray_would_obey_does_not_reach_it(http: httpx.AsyncClient, header: str) -> None:
    async with http:
        answer = await http.get("/v1/models", headers={header: "1", "x-request-id": "mine"})
    seen = answer.json()["headers"]
    assert header.lower() not in seen
    assert seen["x-request-id"] == "mine"


@pytest.mark.parametrize("given", [None, "mine"])
async def test_an_answer_has_one_request_id(given: str | None) -> None:
    """Ray's own middleware runs inside this one, and adds a header to an answer that has it."""
    observed = _apply_middlewares(Observer(echo), middlewares())
    transport = httpx.ASGITransport(app=observed)
    async with httpx.AsyncClient(transport=transport, base_url="http://choir") as http:
        for path in ("/v1/models", "/-/routes"):
            answer = await http.get(path, headers={"x-request-id": given} if given else {})
            [found] = answer.headers.get_list("x-request-id")
            assert found == given or (given is None or path == "/-/routes")


async def test_the_routes_of_ray_are_unknown(http: httpx.AsyncClient) -> None:
    async with http:
        refused(await http.get("/-/routes"), 404, "/-/routes")
        assert (await http.get("/-/healthz")).json()["path"] == "/-/healthz", "HAProxy asks for it"


def test_ray_installs_the_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import http_util

    [(name, path)] = INGRESS.items()
    monkeypatch.setattr(http_util, name, path)
    configured = configure_http_middlewares(HTTPOptions(middlewares=[]))
    assert [each.cls for each in configured.middlewares] == [each.cls for each in middlewares()]
