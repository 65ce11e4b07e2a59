"""`GET /v1/models`: every name that a request may give as `model`, in OpenAI's format."""

from time import time
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import Target
from serve.gateway.http.openapi import described


def models_router(agent: GatewayAgent) -> APIRouter:
    """Return the routes that list the names that `agent` can route."""
    router = APIRouter()
    # OpenAI's format needs a time of creation. A name moves between versions, so take the start of this gateway.
    created = int(time())

    @router.get("/v1/models", **described("Names that can be asked", (401, 403, 429)))
    async def models() -> Response:
        data = [_entry(name, target, created) for name, target in agent.routes.models().items()]
        return Response(to_json({"object": "list", "data": data}), media_type="application/json")

    # `:path`, because the name of a member has a slash: `ensemble/member`.
    @router.get("/v1/models/{model_id:path}", **described("One model", (401, 403, 404, 429)))
    async def model(model_id: str) -> Response:
        entry = _entry(model_id, agent.routes.named(model_id), created)
        return Response(to_json(entry), media_type="application/json")

    return router


def _entry(name: str, target: Target, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "choir",
        "root": target.model,
        "task": target.ensemble.task,
    }
