"""Error answers: OpenAI-shaped, one sentence, never a stack trace."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serve.agents.routes import UnknownModel
from serve.errors import Refusal, RefusedError
from serve.gateway.links import Unavailable
from serve.manifest import explain

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "unavailable_error",
    504: "timeout_error",
}
CLIENT_GONE = 499
"""The status that logs and metrics show if the client left before the answer, as in nginx. No client gets it."""

RETRY_AFTER_SECONDS = 1
SHOWN_PATH = 200
"""The most characters of an unknown path that an error message repeats."""


class ClientGoneError(Exception):
    """The client closed its connection before it got the answer."""


def invalid(error: ValidationError) -> RefusedError:
    """Return the refusal (400) that names the first wrong field and says what is wrong with it."""
    location = error.errors(include_url=False)[0]["loc"]
    return RefusedError(400, explain(error), param=str(location[0]) if location else None)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """Return the body of an error answer: `{"error": {"message", "type", "param", "code"}}`."""
    default = "internal_error" if refusal.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": refusal.message,
            "type": TYPES.get(refusal.status, default),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def error_response(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a refused request."""
    response = Response(
        to_json(error_body(refusal)),
        refusal.status,
        headers=headers,
        media_type="application/json",
    )
    if refusal.status in (429, 503):
        response.headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    return response


def install_handlers(app: FastAPI) -> None:
    """Register handlers that turn the expected exceptions of routes into OpenAI-shaped answers."""
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_exception_handler(UnknownModel, _on_unknown_model)
    app.add_exception_handler(Unavailable, _on_unavailable)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_unknown_route)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(ClientGoneError, _on_client_gone)


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error_response(error.refusal, error.headers)


async def _on_unknown_model(_: Request, error: Exception) -> Response:
    return error_response(Refusal(404, str(error), code="model_not_found", param="model"))


async def _on_unavailable(_: Request, error: Exception) -> Response:
    return error_response(Refusal(503, str(error)))


async def _on_invalid_parameter(_: Request, error: Exception) -> Response:
    """Answer 400 for a wrong query or path parameter. Bodies are checked in `body.py`."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return error_response(Refusal(400, f"{name}: {first['msg']}", param=name))


async def _on_unknown_route(request: Request, error: Exception) -> Response:
    """Answer 404 for a path without a route, and 405 for a method that the route does not take."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:SHOWN_PATH]
    message = str(error.detail)
    if error.status_code == 404:
        message = f"There is no route {path}; GET /openapi.json lists all routes."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path} does not take {request.method}; use {allowed}."
    return error_response(Refusal(error.status_code, message), error.headers)


async def _on_client_gone(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
