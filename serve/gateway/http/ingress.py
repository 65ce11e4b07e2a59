"""Middleware in front of Ray Serve's own HTTP server. Ray's proxies and the gateways run it.

Ray obeys some headers of clients. One sets a time limit, after which Ray answers in plain text. One keeps a request
running after its client has left. One asks for a certain replica. Ray also answers `/-/routes` itself. Limits and
routes belong to Choir, so this middleware hides all of them from Ray. And Ray adds a request id to answers that have
Choir's, so this middleware leaves one. `ray_options` tells Ray to call `middlewares`."""

import uuid

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Refusal
from serve.gateway.http.errors import error_response
from serve.gateway.http.observe import REQUEST_ID_HEADER
from serve.ray_options import RAYS_ROUTES

RAYS_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id"}
)
"""Ray also accepts the last one with underscores."""


class Ingress:
    """ASGI middleware that removes Ray's headers, hides its routes, and gives each answer one request id.

    `/-/healthz` stays: HAProxy uses it to check that a gateway is alive."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                _keep_one_id(MutableHeaders(scope=message))
            await send(message)

        if scope["path"].lower() == RAYS_ROUTES:
            missing = f"There is no route {RAYS_ROUTES}; GET /openapi.json lists all routes."
            await error_response(Refusal(404, missing))(scope, receive, send_named)
            return
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower().replace(b"_", b"-") not in RAYS_HEADERS
        ]
        await self._app({**scope, "headers": headers}, receive, send_named)


def _keep_one_id(headers: MutableHeaders) -> None:
    """Leave the first request id, which is the gateway's if it has answered. What Ray answers alone may have none."""
    first = next(iter(headers.getlist(REQUEST_ID_HEADER)), uuid.uuid4().hex)
    del headers[REQUEST_ID_HEADER]
    headers[REQUEST_ID_HEADER] = first


def middlewares() -> list[Middleware]:
    """Return the middleware for Ray Serve, which calls this by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Ingress)]
