"""A typed client for a Choir server: `Choir` (blocking) and `AsyncChoir` (asyncio).

>>> with Choir("http://127.0.0.1:8000") as choir:
...     choir.predict("intents", "where is my card?").labels

The package needs only httpx, httpx-sse and pydantic, and nothing of the server.
"""

from choir_client._flows import Retries
from choir_client._images import image, image_part
from choir_client._requests import Input
from choir_client.async_client import AsyncChoir
from choir_client.client import Choir
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
    Model,
    Pruned,
    PrunedFiles,
    PrunedVersion,
    Rollout,
    Tally,
    Trial,
    Usage,
)
from choir_client.predictions import (
    ClassificationItem,
    ClassificationMember,
    ClassificationPrediction,
    MemberPrediction,
    MultilabelItem,
    MultilabelMember,
    MultilabelPrediction,
    Prediction,
    PredictionItem,
    RegressionItem,
    RegressionMember,
    RegressionPrediction,
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
    "ClassificationItem",
    "ClassificationMember",
    "ClassificationPrediction",
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
    "MultilabelItem",
    "MultilabelMember",
    "MultilabelPrediction",
    "NotFound",
    "Prediction",
    "PredictionItem",
    "Pruned",
    "PrunedFiles",
    "PrunedVersion",
    "RateLimited",
    "RegressionItem",
    "RegressionMember",
    "RegressionPrediction",
    "Retries",
    "Rollout",
    "RolloutAborted",
    "Tally",
    "TooLarge",
    "Trial",
    "Unauthorized",
    "Unavailable",
    "Usage",
    "image",
    "image_part",
]
