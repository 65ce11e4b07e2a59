"""Streams server-sent events from an engine to a client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Protocol

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.engine.interface import DEADLINE
from serve.errors import Refusal, RefusedError
from serve.gateway.http.disconnect import until_gone
from serve.gateway.http.errors import ClientGoneError, error_body
from serve.gateway.http.observe import log_error
from serve.gateway.links import Unavailable


class Parts(Protocol):
    """The parts of a streamed answer."""

    def __aiter__(self) -> AsyncIterator[bytes | Refusal]: ...

    def aclose(self) -> Awaitable[None]:
        """End the work in the engine."""
        ...


class EventStream(Response):
    """Passes an engine's events on as they arrive. Always closes the engine's stream in the end."""

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, rest: Parts, request_id: str, seconds: float | None = None
    ) -> None:
        """`seconds`: how long the client still waits, before an error event ends the stream; None: for ever."""
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._request_id = request_id
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            try:
                await until_gone(receive, self._send(send))
            except ClientGoneError:
                return

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async with asyncio.timeout(self._seconds) as limit:
                async for part in self._rest:
                    assert isinstance(part, bytes), "a refusal is raised where it is counted"
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except Exception as error:
            # The status is already sent, so send the error as an event, as OpenAI's clients expect.
            late = limit.expired()
            if not late:
                log_error(self._request_id, error)
            event = _event(RefusedError.of(DEADLINE) if late else error)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(error: Exception) -> bytes:
    if isinstance(error, RefusedError):
        refusal = error.refusal
    else:
        message = str(error) if isinstance(error, Unavailable) else "The stream broke off."
        refusal = Refusal(503, message)
    return b"data: " + to_json(error_body(refusal)) + b"\n\n"
