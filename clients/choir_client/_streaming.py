"""Server-sent events of OpenAI-compatible servers: JSON documents, then `[DONE]`.

httpx-sse splits the stream into events. httpx's own line iterator would not do: it also ends lines at U+2028,
U+2029 and U+0085, which may stand unescaped in JSON.
"""

import json
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from choir_client._requests import read
from choir_client.exceptions import ConnectionFailed, error_from_fields

M = TypeVar("M", bound=BaseModel)

DONE = "[DONE]"


def chunk_of(data: str, model: type[M]) -> M:
    """Return one event's data as `model`. Raises APIError for an event that holds an `error`."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        fields = body["error"]
        code = fields.get("code")
        raise error_from_fields(fields, code if isinstance(code, int) else 500)
    return read(data, TypeAdapter(model), "the stream")


def cut_off() -> ConnectionFailed:
    """Return the exception for a stream that ended without `[DONE]`."""
    return ConnectionFailed("the stream ended before the answer was complete")
