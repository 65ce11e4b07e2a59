"""Middleware in front of Ray Serve's own HTTP server. Ray's proxies and the gateways run it.

Ray obeys some headers of clients. One sets a time limit, after which Ray answers in plain text. One keeps a request
running after its client has left. One asks for a certain replica. Ray also answers `/-/routes` itself. Limits and
routes belong to Choir, so this middleware hides all of them from Ray. `ray_options` tells Ray to call `middlewares`."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import Refusal
from serve.gateway.http.errors import error_response
from serve.ray_options import RAYS_ROUTES

RAYS_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id"}
)
"""Ray also accepts the last one with underscores."""


class Ingress:
    """ASGI middleware that removes Ray's headers and hides its routes.

    `/-/healthz` stays: HAProxy uses it to check that a gateway is alive."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].lower() == RAYS_ROUTES:
            missing = f"There is no route {RAYS_ROUTES}; GET /openapi.json lists all routes."
            await error_response(Refusal(404, missing))(scope, receive, send)
            return
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower().replace(b"_", b"-") not in RAYS_HEADERS
        ]
        await self._app({**scope, "headers": headers}, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middleware for Ray Serve, which calls this by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Ingress)]
