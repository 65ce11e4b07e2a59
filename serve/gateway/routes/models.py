"""`GET /v1/models`: every name that a request may give as `model`, in OpenAI's format."""

from time import time
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.responses import Response

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import Target
from serve.gateway.http.openapi import described
from serve.manifest import METHODS, Ensemble, Method


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
    ensemble = target.ensemble
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "choir",
        "root": target.model,
        "task": ensemble.task,
        "methods": [] if target.member else choosable_methods(ensemble),
        "members": [target.member] if target.member else [each.name for each in ensemble.members],
        "pairs": takes_pairs(ensemble),
    }


def choosable_methods(ensemble: Ensemble) -> list[Method]:
    """Return the methods that a request may choose; the ensemble's own is the first."""
    spec = ensemble.fusion
    fitted = {None: None, "gate": "gate"}.get(spec.model, "stack")
    needs_fit = {"stack", "gate"} - {fitted}
    others = [each for each in METHODS[ensemble.task] if each not in (spec.method, *needs_fit)]
    return [spec.method, *others]


def takes_pairs(ensemble: Ensemble) -> bool | None:
    """Return whether each input needs a `text_pair`; None if the members' heads decide it, which the engine reads."""
    if "{text_pair}" in ensemble.template:
        return True
    return None if ensemble.template == "{text}" and ensemble.task != "generation" else False
