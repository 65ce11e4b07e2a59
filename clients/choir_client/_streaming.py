"""Server-sent events as OpenAI-compatible servers send them: `data: {...}` lines, then `data:
[DONE]`.
"""

import json
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from choir_client._requests import read
from choir_client.exceptions import ConnectionFailed, error_from_fields

M = TypeVar("M", bound=BaseModel)

DONE = "[DONE]"


def data_of(line: str) -> str | None:
    """The data of one line of the stream; None for comments, other fields and blank lines."""
    return line[len("data:") :].strip() if line.startswith("data:") else None


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
