"""`GET /openapi.json`: the schema of the routes, their bodies and their errors.

FastAPI cannot see the bodies, because the routes read them themselves (`body.py`). So this module describes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.gateway.http.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    ErrorAnswer,
    GenerateRequest,
    LoadLoraRequest,
    PredictAnswer,
    PredictRequest,
    RollbackRequest,
    TokensRequest,
    UnloadLoraRequest,
)
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from serve.protocol.views import EnsembleView, RolloutView

INFERENCE_ERRORS = (400, 401, 403, 404, 408, 413, 429, 503, 504)
ADMIN_ERRORS = (400, 401, 403, 404, 408, 409, 413, 429, 503)
READ_ERRORS = (401, 403, 404, 429, 503)
LIST_ERRORS = (401, 403, 429, 503)

MEANINGS: Mapping[int, str] = {
    400: "The request is invalid.",
    401: "The token is missing or wrong.",
    403: "The token, the host or the origin may not do this.",
    404: "There is no such model, ensemble, version or rollout.",
    408: "The body did not arrive in time.",
    409: "Another version is active, a rollout is running, or there is no room.",
    413: "The body is too large.",
    429: "The server is full, or the caller has sent too many requests; Retry-After says when to try again.",
    503: "No engine is ready, or the controller cannot be reached.",
    504: "The time that X-Request-Timeout gives is over.",
}
_BODIES = (
    *(PredictRequest, ClassifyRequest, EmbeddingsRequest, GenerateRequest, TokensRequest),
    *(SwapRequest, RollbackRequest, LoadLoraRequest, UnloadLoraRequest, PruneRequest),
)
_ANSWERS = (
    *(PredictAnswer, ClassifyAnswer, EmbeddingsAnswer),
    *(RolloutView, EnsembleView, PruneView, ErrorAnswer),
)
_SCHEMAS = "#/components/schemas/"


def described(
    summary: str,
    errors: Sequence[int] = (),
    *,
    body: type[BaseModel] | None = None,
    answer: type[BaseModel] | None = None,
    streams: bool = False,
) -> dict[str, Any]:
    """Return the keyword arguments of a route that describe it in the schema."""
    responses: dict[int, dict[str, Any]] = {
        error: {"description": MEANINGS[error], "content": _json(ErrorAnswer)} for error in errors
    }
    if streams:
        kinds: dict[str, Any] = {"application/json": {}, "text/event-stream": {}}
        responses[200] = {"description": summary, "content": kinds}
    if answer is not None:
        responses[200] = {"description": summary, "content": _json(answer)}
    extra = {"requestBody": {"required": True, "content": _json(body)}} if body else None
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


def install_schema(app: FastAPI) -> None:
    """Make `/openapi.json` answer with the schema of the routes of `app` and of the models above."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _schema(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, definitions = models_json_schema(
        [
            *((model, "validation") for model in _BODIES),
            *((model, "serialization") for model in _ANSWERS),
        ],
        ref_template=_SCHEMAS + "{model}",
    )
    document["components"] = {
        "schemas": definitions["$defs"],
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    for path in document["paths"].values():
        for operation in path.values():
            # FastAPI adds a 422 to every route with parameters; Choir answers 400 instead.
            operation["responses"].pop("422", None)
    return document


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + model.__name__}}}
