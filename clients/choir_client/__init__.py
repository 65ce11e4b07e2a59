"""A typed client for a Choir server: `Choir` (blocking) and `AsyncChoir` (asyncio).

>>> with Choir("http://127.0.0.1:8000") as choir:
...     choir.predict("intents", "where is my card?").labels

The package needs only httpx, httpx-sse and pydantic, and nothing of the server.
"""

from choir_client._flows import Retries
from choir_client._requests import Input
from choir_client.client import AsyncChoir, Choir
from choir_client.exceptions import (
    APIError,
    BadRequest,
    ChoirError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidAnswer,
    NotFound,
    RateLimited,
    RolloutAborted,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from choir_client.models import (
    AdapterRef,
    AuditEntry,
    ChatChunk,
    ChatCompletion,
    Completion,
    EnsembleMember,
    EnsembleStatus,
    Health,
    MemberPrediction,
    Model,
    Prediction,
    PredictionItem,
    Rollout,
    Tally,
    Trial,
    Usage,
)

__all__ = [
    "APIError",
    "AdapterRef",
    "AsyncChoir",
    "AuditEntry",
    "BadRequest",
    "ChatChunk",
    "ChatCompletion",
    "Choir",
    "ChoirError",
    "Completion",
    "Conflict",
    "ConnectionFailed",
    "EnsembleMember",
    "EnsembleStatus",
    "Forbidden",
    "Health",
    "Input",
    "InvalidAnswer",
    "MemberPrediction",
    "Model",
    "NotFound",
    "Prediction",
    "PredictionItem",
    "RateLimited",
    "Retries",
    "Rollout",
    "RolloutAborted",
    "Tally",
    "TooLarge",
    "Trial",
    "Unauthorized",
    "Unavailable",
    "Usage",
]
