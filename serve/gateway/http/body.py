"""Reading a request's body: its size, its JSON, and its fields."""

import asyncio
import math
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from serve.errors import RefusedError
from serve.gateway.http.errors import invalid
from serve.gateway.http.observe import exchange_of

M = TypeVar("M", bound=BaseModel)

BYTES_PER_MB = 1_000_000
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_NUMBERS = (b"e000", b"e+000", b"0" * 300)
"""A number that becomes infinity, which the parser accepts, contains one of these once every digit is written as 0."""


class BodyReader:
    """Reads bodies that are JSON objects.

    A body may have at most `limit_mb` megabytes (of 1,000,000 bytes) and must arrive within `seconds`."""

    def __init__(self, limit_mb: float, seconds: float) -> None:
        self._limit_mb = limit_mb
        self._limit = int(limit_mb * BYTES_PER_MB)
        self._seconds = seconds

    async def object(self, request: Request) -> dict[str, Any]:
        """Return the body, a JSON object.

        Raises RefusedError: 413 if it is too large, 408 if it takes too long, 400 if it is not a JSON
        object."""
        raw = await self._bytes(request)
        if not raw:
            raise RefusedError(400, "The body is empty; it must be a JSON object.")
        try:
            # Strict JSON: code that later writes the value again would fail on NaN, lone surrogates and
            # deep nesting.
            value = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise RefusedError(400, f"The body is not valid JSON: {error}.") from error
        if _may_hold_infinity(raw) and _holds_infinity(value):
            raise RefusedError(400, "The body is not valid JSON: a number in it is too large.")
        if not isinstance(value, dict):
            raise RefusedError(400, f"The body must be a JSON object, not {kind_of(value)}.")
        return value

    async def model(self, request: Request, model: type[M]) -> M:
        """Return the body as `model`. Raises RefusedError as `object` does, and 400 for a wrong field."""
        return validated(model, await self.object(request))

    async def nothing(self, request: Request) -> None:
        """Read the body of a route that takes no fields. Raises RefusedError (400) if it has any."""
        if (await self._bytes(request)).strip() not in (b"", b"{}"):
            raise RefusedError(400, "This route takes no fields; send {}.")

    async def _bytes(self, request: Request) -> bytes:
        # Check the announced size first, so that the client is told before it has sent everything.
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limit:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limit:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError as error:
            raise RefusedError(
                408, f"The body did not arrive within {self._seconds:g} seconds; send it again."
            ) from error
        exchange_of(request).body_bytes = size
        return b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, f"The body is larger than {self._limit_mb:g} MB; send fewer inputs at a time."
        )


def validated(model: type[M], value: object) -> M:
    """Return `value` as `model`. Raises RefusedError (400), which names the wrong field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from error


def _may_hold_infinity(raw: bytes) -> bool:
    """Return whether a number in `raw` may be infinite. Takes linear time, whatever the body holds."""
    alike = raw.translate(_ALIKE)
    return any(number in alike for number in _LARGE_NUMBERS)


def _holds_infinity(value: object) -> bool:
    """Return whether `value` holds an infinite number. The parser has bounded the depth of nesting."""
    if isinstance(value, dict):
        return any(map(_holds_infinity, value.values()))
    if isinstance(value, list):
        return any(map(_holds_infinity, value))
    return isinstance(value, float) and math.isinf(value)


def kind_of(value: object) -> str:
    """Return the JSON type of a value, in words for an error message."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
