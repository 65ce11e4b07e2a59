"""Reading a request's body: its size, its JSON, and its fields."""

import asyncio
import math
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from serve.gateway.http.errors import invalid
from serve.gateway.http.observe import exchange_of
from serve.refusal import RefusedError

M = TypeVar("M", bound=BaseModel)

BYTES_PER_MB = 1_000_000
_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_NUMBERS = (b"e000", b"e+000", b"0" * 300)
"""Only such a number can become infinity, which the parser lets through; with all digits written as 0."""


class BodyReader:
    """Reads JSON objects of at most `limit_mb` megabytes (1 MB is 1,000,000 bytes) that arrive
    within `seconds`."""

    def __init__(self, limit_mb: float, seconds: float) -> None:
        self._limit_mb = limit_mb
        self._limit = int(limit_mb * BYTES_PER_MB)
        self._seconds = seconds

    async def object(self, request: Request) -> dict[str, Any]:
        """The body, a JSON object. Raises RefusedError: 413 when it is too large, 408 when it takes
        too long, 400 when it is no JSON object."""
        raw = await self._bytes(request)
        if not raw:
            raise RefusedError(400, "The body is empty; it must be a JSON object.")
        try:
            # Strict JSON: NaN, lone surrogates and endless nesting would break whoever writes the
            # value again further down.
            value = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise RefusedError(400, f"The body is not valid JSON: {error}.") from error
        if _may_hold_infinity(raw) and _holds_infinity(value):
            raise RefusedError(400, "The body is not valid JSON: a number in it is too large.")
        if not isinstance(value, dict):
            raise RefusedError(400, f"The body must be a JSON object, not {kind_of(value)}.")
        return value

    async def model(self, request: Request, model: type[M]) -> M:
        """The body as `model`. Raises RefusedError."""
        return validated(model, await self.object(request))

    async def nothing(self, request: Request) -> None:
        """For routes that take no fields. Raises RefusedError (400) for a body that has any."""
        if (await self._bytes(request)).strip() not in (b"", b"{}"):
            raise RefusedError(400, "This route takes no fields; send {}.")

    async def _bytes(self, request: Request) -> bytes:
        # Refused by what it announces first, so that a client learns it before it has sent it all.
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
    """`value` as `model`. Raises RefusedError naming the field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from error


def _may_hold_infinity(raw: bytes) -> bool:
    """Takes time in proportion to the body, whatever is in it."""
    alike = raw.translate(_ALIKE)
    return any(number in alike for number in _LARGE_NUMBERS)


def _holds_infinity(value: object) -> bool:
    """Nesting is bounded by the parser."""
    if isinstance(value, dict):
        return any(map(_holds_infinity, value.values()))
    if isinstance(value, list):
        return any(map(_holds_infinity, value))
    return isinstance(value, float) and math.isinf(value)


def kind_of(value: object) -> str:
    """What JSON calls a value's type, for an error message."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
