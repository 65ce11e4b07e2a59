"""Spans of OpenTelemetry: where a request's time goes, in one trace over all processes.

Off unless the server is given an endpoint. Then each process exports what it did, and passes its place in the trace on
by W3C's `traceparent`. Attributes never hold a prompt, an answer or a token."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

from serve.config.sources import ConfigError

Headers: TypeAlias = Mapping[str, str]
"""`traceparent` and `tracestate`."""
Kind: TypeAlias = Literal["server", "internal"]

MISSING = "Spans need OpenTelemetry, which is not installed: pip install 'choir-serve[otel]'."
TRACES_PATH = "/v1/traces"
VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables for the endpoint, the more specific one first."""
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
TIMEOUT_SECONDS = 2
"""How long an export may take, unless OpenTelemetry's variables say otherwise. A server that stops waits for it."""

_carried: ContextVar[Headers | None] = ContextVar("choir_spans", default=None)
"""The place in the trace of what the current task does."""
_provider: Any = None
_tracer: Any = None
"""OpenTelemetry's, between `start` and `stop` of this process."""


class Span:
    """One piece of work. Without an endpoint it records nothing, and passes on what the client sent."""

    def __init__(self, recorded: Any, headers: Headers | None) -> None:
        self._recorded = recorded
        self.headers = headers
        """What whoever works for this span goes on with."""

    def name(self, name: str) -> None:
        """Give it a better name, once it is known."""
        if self._recorded is not None:
            self._recorded.update_name(name)

    def note(self, **attributes: str | int | float | bool | None) -> None:
        """Set attributes; those that are None are left out. Two underscores stand for a dot in a name."""
        if self._recorded is not None:
            for name, value in attributes.items():
                if value is not None:
                    self._recorded.set_attribute(name.replace("__", "."), value)

    def failed(self, why: str) -> None:
        """Mark it as failed. `why`: a status or the name of an exception, never its message, which may repeat a
        prompt."""
        if self._recorded is not None:
            from opentelemetry.trace import Status, StatusCode

            self._recorded.set_status(Status(StatusCode.ERROR, why))

    def end(self) -> None:
        """Note when it ended."""
        if self._recorded is not None:
            self._recorded.end()


def endpoint_of(setting: str | None) -> str | None:
    """Return the setting, or else the endpoint in OpenTelemetry's own variables, as the base of an address; None if
    there is none."""
    traces, base = (os.environ.get(name) or None for name in VARIABLES)
    if setting is None and traces is not None:
        return traces.removesuffix(TRACES_PATH)
    return setting or base


def check_installed() -> None:
    """Raises ConfigError if OpenTelemetry is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING) from error


def start(endpoint: str | None, process: str) -> None:
    """Begin to export the spans of this process, if there is an endpoint. `process` is its name in the traces.

    Obeys OpenTelemetry's variables for headers, sampling, batches and resources. Raises ConfigError if OpenTelemetry is
    not installed."""
    if endpoint is None:
        return
    check_installed()
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _provider, _tracer
    named = {SERVICE_INSTANCE_ID: process}
    if not _has_service_name():
        named[SERVICE_NAME] = "choir"
    _provider = TracerProvider(resource=Resource.create(named))
    _provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint)))
    # vLLM exports its own spans through the provider of the process.
    trace.set_tracer_provider(_provider)
    _tracer = _provider.get_tracer("choir")


def stop() -> None:
    """Export what is left, and record no more."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def _exporter(endpoint: str) -> Any:
    """Return OpenTelemetry's exporter for the protocol that its variables name; HTTP by default."""
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), HTTP)
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", str(TIMEOUT_SECONDS))
    # vLLM reads the first one alone, and would take gRPC without it.
    os.environ[PROTOCOLS[0]] = protocol
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=traces_address(endpoint))


def traces_address(endpoint: str) -> str:
    """Return where spans go by HTTP, below the base address of an endpoint."""
    return endpoint.rstrip("/") + TRACES_PATH


def _has_service_name() -> bool:
    """Return whether OpenTelemetry's variables name the service."""
    resource = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in resource


def begin(
    name: str,
    parent: Headers | None,
    kind: Kind = "internal",
    began: float | None = None,
) -> Span:
    """Begin a span below `parent`. The caller ends it. `began`: when, in seconds of Unix time; None: now."""
    if _tracer is None:
        return Span(None, parent)
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    recorded = _tracer.start_span(
        name,
        context=propagator.extract(parent or {}),
        kind=SpanKind[kind.upper()],
        start_time=None if began is None else int(began * 1e9),
    )
    headers: dict[str, str] = {}
    propagator.inject(headers, set_span_in_context(recorded))
    return Span(recorded, headers)


@contextmanager
def within(name: str, parent: Headers | None = None) -> Iterator[Span]:
    """Surround work of the current task with a span below `parent`, or else below what surrounds it already. Not in an
    asynchronous generator, which runs in many contexts."""
    if _tracer is None:
        yield Span(None, parent)
        return
    span = begin(name, parent or _carried.get())
    token = _carried.set(span.headers)
    try:
        yield span
    except Exception as error:
        span.failed(type(error).__name__)
        raise
    finally:
        _carried.reset(token)
        span.end()


def carried() -> Headers | None:
    """Return the place in the trace of what the current task does, for vLLM; None if spans are off."""
    return _carried.get()
