"""The exceptions of this package.

ChoirError
├── ConnectionFailed        no answer: refused, timed out, or cut off
├── InvalidAnswer           the answer is not part of Choir's API
├── RolloutAborted          a shadow or a canary was aborted while the caller waited: `rollout`
└── APIError                the server refused the request: `status`, `type`, `param`, `code`, `message`, `request_id`
    ├── BadRequest          400
    ├── Unauthorized        401
    ├── Forbidden           403
    ├── NotFound            404
    ├── Conflict            409  another version is active, a rollout is running, or there is no room
    ├── TooLarge            413
    ├── RateLimited         429  `retry_after`
    └── Unavailable         502, 503, 504, and a 5xx that is not Choir's: `retry_after`
"""

from typing import Any

import httpx

from choir_client.models import Rollout


class ChoirError(Exception):
    """The base class of all exceptions of this package."""


class ConnectionFailed(ChoirError):
    """The server could not be reached, or the connection broke before the answer was complete."""


class InvalidAnswer(ChoirError):
    """The server answered with something that is not part of Choir's API."""


class RolloutAborted(ChoirError):
    """The candidate did not become the active version; `rollout.reason` says why."""

    def __init__(self, rollout: Rollout) -> None:
        super().__init__(f"The rollout {rollout.id} was aborted: {rollout.reason}")
        self.rollout = rollout


class APIError(ChoirError):
    """The server refused the request. The attributes are those of the OpenAI-shaped error body."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        """Seconds that the server asks to wait; None if it does not say."""


class BadRequest(APIError):
    """400: the request is malformed, or asks for something that the ensemble cannot do."""


class Unauthorized(APIError):
    """401: a token is missing or wrong."""


class Forbidden(APIError):
    """403: the token, the host or the origin may not do this."""


class NotFound(APIError):
    """404: no such model, ensemble, version or rollout."""


class Conflict(APIError):
    """409: `expected_version` is not active, a rollout is running, or there is no room."""


class TooLarge(APIError):
    """413: the body is larger than the server allows."""


class RateLimited(APIError):
    """429: the server is full, or this caller has sent too many requests."""


class Unavailable(APIError):
    """502, 503 or 504: no gateway or engine is ready, or the controller cannot be reached. So is every 5xx in another
    shape than Choir's: it is a proxy's, such as HAProxy's 500 while no gateway lives."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def error_from_fields(fields: dict[str, Any], status: int, **known: Any) -> APIError:
    """Return the exception for the `error` object of a body or of a stream's event."""
    unknown = APIError if fields or status < 500 else Unavailable
    return _BY_STATUS.get(status, unknown)(
        str(fields.get("message") or f"the server answered {status} without a reason"),
        status=status,
        type=fields.get("type"),
        param=fields.get("param"),
        code=None if fields.get("code") is None else str(fields["code"]),
        **known,
    )


def error_from_response(response: httpx.Response) -> APIError:
    """Return the exception for a response with status 400 or more, whose body must have been read.

    A body that is not Choir's, such as a proxy's page, is left out of the message: the status says more.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    fields = body.get("error") if isinstance(body, dict) else None
    return error_from_fields(
        fields if isinstance(fields, dict) else {},
        response.status_code,
        request_id=response.headers.get("x-request-id"),
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
