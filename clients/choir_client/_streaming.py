"""What the server-sent events of OpenAI-compatible servers hold: JSON documents, then `[DONE]`.

httpx-sse takes the stream apart. httpx's own lines end at U+2028, U+2029 and U+0085 too, which JSON may hold as they
are.
"""

import json
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from choir_client._requests import read
from choir_client.exceptions import ConnectionFailed, error_from_fields

M = TypeVar("M", bound=BaseModel)

DONE = "[DONE]"


def chunk_of(data: str, model: type[M]) -> M:
    """One event as `model`. Raises the APIError that an event with an `error` stands for."""
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
    """For a stream that ended without its last event."""
    return ConnectionFailed("the stream ended before the answer was complete")
