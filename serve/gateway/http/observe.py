"""Observability of requests: the request id, the log line and the metrics."""

import logging
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import metrics
from serve.agents.routes import Target
from serve.errors import Refusal
from serve.gateway.http.errors import CLIENT_GONE, error_response
from serve.logs.lines import with_fields
from serve.ray_options import ARRIVED_HEADER
from serve.watching import spans
from serve.watching.spans import Span

logger = logging.getLogger("choir.gateway")

REQUEST_ID_HEADER = "x-request-id"
MODEL_HEADER = "x-choir-model"
TRACE_HEADERS = ("traceparent", "tracestate")
PROBES = ("/health", "/ready", "/metrics")
"""Routes that machines ask all the time: each request to them is a line of the level debug."""
PROXY_SPAN = "choir.proxy"
LONGEST_IN_PROXY = 600.0
"""Seconds. A request that claims to have arrived earlier than that has no span of the proxy."""
_MICROSECONDS = re.compile(r"[0-9]{1,18}")
_SANE_ID = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?")
_SCOPE_KEY = "choir.exchange"


@dataclass
class Exchange:
    """One request and its answer."""

    request_id: str
    trace_headers: Mapping[str, str]
    started: float = field(default_factory=perf_counter)
    status: int | None = None
    target: Target | None = None
    timeout: float | None = None
    """Seconds that the client gives the request from its arrival on; None for no limit of its own."""
    body_bytes: int = 0
    """Bytes of the request's body; 0 until it has been read."""
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def seconds(self) -> float:
        """Seconds since the request arrived."""
        return perf_counter() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the client's time is over, negative afterwards; None if it gives no limit."""
        return None if self.timeout is None else self.timeout - self.seconds

    def time_for(self, target: Target) -> float | None:
        """Seconds that an engine has for an answer of `target`; None for no limit.

        What the mirror asks again is no longer the client's, and the mirror has a limit of its own."""
        return None if target.track == "shadow" else self.seconds_left

    @property
    def ensemble(self) -> str:
        """The name of the ensemble that answers; empty if none was resolved."""
        return self.target.ensemble.name if self.target else ""

    def resolved(self, target: Target) -> None:
        """Note that `target` answers this request."""
        if self.target is None:
            self._open.enter_context(metrics.request_in_flight(target.ensemble.name))
        self.target = target

    def afterwards(self, act: Callable[[], None]) -> None:
        """Call `act` once the client has its answer or has left."""
        self._open.callback(act)

    def close(self) -> None:
        self._open.close()


def exchange_of(request: Request) -> Exchange:
    """Return the exchange that the `Observer` opened for a request."""
    exchange: Exchange = request.scope[_SCOPE_KEY]
    return exchange


class Observer:
    """The outermost ASGI middleware. It gives each request its id, counts it once, and writes one log line.

    An unexpected exception becomes a 500 with a fixed sentence and the request id, which is also in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = scope[_SCOPE_KEY] = _exchange(headers)
        proxy = span = Span(None, exchange.trace_headers)
        if scope["path"] not in PROBES:
            proxy = _proxy_span(exchange.trace_headers, headers)
            span = spans.begin(scope["method"], proxy.headers, "server")
        exchange.trace_headers = span.headers or {}

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = exchange.request_id
                if exchange.target is not None:
                    headers[MODEL_HEADER] = exchange.target.model
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            log_error(exchange.request_id, error)
            if exchange.status is None:
                await error_response(_unexpected(exchange))(scope, receive, send_named)
        finally:
            exchange.close()
            _count_and_log(exchange, scope)
            _end(span, exchange, scope)
            proxy.end()


def log(level: int, event: str, request_id: str, **fields: Any) -> None:
    """Log one line of a request. `fields` must never hold a prompt, an answer or a token."""
    if logger.isEnabledFor(level):
        named = {"event": event, "request_id": request_id, **fields}
        logger.log(level, "%s", event, extra=with_fields(named))


def log_error(request_id: str, error: Exception) -> None:
    """Log one line with the stack trace. The client never sees it."""
    named = {"event": "error", "request_id": request_id}
    logger.error("%s", type(error).__name__, exc_info=error, extra=with_fields(named))


def _exchange(headers: Headers) -> Exchange:
    given = headers.get(REQUEST_ID_HEADER, "")
    return Exchange(
        request_id=given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex,
        trace_headers={name: headers[name] for name in TRACE_HEADERS if name in headers},
    )


def _unexpected(exchange: Exchange) -> Refusal:
    return Refusal(
        500,
        "Something went wrong inside Choir; the server's log has the reason under the request id "
        f"{exchange.request_id}.",
    )


def _proxy_span(parent: spans.Headers, headers: Headers) -> Span:
    """Begin the span of HAProxy, if it says when the request arrived. Where there is no HAProxy, a client may have
    written that header, so it must make sense."""
    arrived = headers.get(ARRIVED_HEADER, "")
    began = int(arrived) / 1e6 if _MICROSECONDS.fullmatch(arrived) else 0.0
    if not 0 <= time() - began <= LONGEST_IN_PROXY:
        return Span(None, parent)
    return spans.begin(PROXY_SPAN, parent, began=began)


def _end(span: Span, exchange: Exchange, scope: Scope) -> None:
    """End the span of a request, with OpenTelemetry's names where there are any."""
    route = getattr(scope.get("route"), "path_format", "")
    status = CLIENT_GONE if exchange.status is None else exchange.status
    target = exchange.target
    span.name(f"{scope['method']} {route}".rstrip())
    span.note(
        http__request__method=scope["method"],
        http__route=route or None,
        http__response__status_code=status,
        choir__request_id=exchange.request_id,
        choir__ensemble=target.ensemble.name if target else None,
        choir__version=target.ensemble.version if target else None,
        choir__track=target.track if target else None,
    )
    if status >= 500:
        span.failed(str(status))
    span.end()


def _count_and_log(exchange: Exchange, scope: Scope) -> None:
    # Take the route's template, so that paths that clients invent do not become labels of metrics. An unknown path
    # has none.
    route = getattr(scope.get("route"), "path_format", "")
    status = CLIENT_GONE if exchange.status is None else exchange.status
    target, seconds = exchange.target, exchange.seconds
    track = target.track if target else "stable"
    metrics.request_answered(exchange.ensemble, route, status, track, seconds)
    log(
        logging.DEBUG if route in PROBES else logging.INFO,
        "request",
        exchange.request_id,
        method=scope["method"],
        route=route,
        status=status,
        model=target.model if target else None,
        version=target.ensemble.version if target else None,
        ms=round(seconds * 1000, 2),
    )
