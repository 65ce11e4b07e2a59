"""What stands before Ray Serve's own HTTP server, in proxies and gateways.

Ray reads some headers of clients as its own: one sets a time limit after which Ray answers in plain text, one turns off
that a client who leaves ends its work, one asks for a certain replica. And it answers `/-/routes` itself. Limits and
routes are Choir's, so none of it reaches Ray. `ray_options` tells Ray to call `middlewares`."""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.gateway.http.errors import error_response
from serve.ray_options import RAYS_ROUTES
from serve.refusal import Refusal

RAYS_HEADERS = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id"}
)
"""Ray takes the last one with underscores too."""


class Ingress:
    """ASGI middleware: takes Ray's headers off, and its routes away.

    `/-/healthz` stays: HAProxy asks it whether a gateway lives."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].lower() == RAYS_ROUTES:
            missing = (
                f"There is no route {RAYS_ROUTES}; GET /openapi.json lists those that there are."
            )
            await error_response(Refusal(404, missing))(scope, receive, send)
            return
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower().replace(b"_", b"-") not in RAYS_HEADERS
        ]
        await self._app({**scope, "headers": headers}, receive, send)


def middlewares() -> list[Middleware]:
    """Ray Serve's callback (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`)."""
    return [Middleware(Ingress)]
