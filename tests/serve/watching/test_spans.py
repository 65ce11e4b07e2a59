"""Spans of a gateway, exported to a real receiver of OTLP."""

import builtins
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serve.config.sources import ConfigError
from serve.engine.interface import PredictCall
from serve.errors import Refusal
from serve.ray_options import ARRIVED_HEADER
from serve.watching import spans
from tests.serve.gateway.conftest import Gateway, Start, start
from tests.watching.receiver import Receiver, receiving

__all__ = ["start"]

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CLIENT}-01"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in (*spans.VARIABLES, *spans.PROTOCOLS):
        monkeypatch.delenv(name, raising=False)
    with receiving() as started:
        yield started
        spans.stop()


def called(gateway: Gateway) -> PredictCall:
    (call,) = gateway.engines.calls
    assert isinstance(call, PredictCall)
    return call


async def ask(gateway: Gateway, **headers: Any) -> int:
    body = {"model": "intents", "input": "a secret text"}
    answer = await gateway.http.post("/v1/predict", json=body, headers=headers)
    return answer.status_code


async def test_a_request_is_a_span_below_the_clients_and_the_engine_goes_on_from_it(
    start: Start, receiver: Receiver
) -> None:
    spans.start(receiver.url, "gateway-0")
    gateway = await start()
    assert await ask(gateway, traceparent=PARENT) == 200
    spans.stop()
    (span,) = receiver.wait_for(TRACE, "POST /v1/predict")["POST /v1/predict"]
    assert (span.parent, span.service, span.failed) == (CLIENT, "choir", False)
    assert span.attributes["choir.ensemble"] == "intents"
    assert span.attributes["choir.version"] == 3
    assert span.attributes["http.response.status_code"] == 200
    assert "secret" not in str(span.attributes)
    carried = called(gateway).trace_headers
    assert carried is not None
    assert carried["traceparent"] == f"00-{TRACE}-{span.span}-01"


async def test_haproxys_time_surrounds_the_gateways(start: Start, receiver: Receiver) -> None:
    spans.start(receiver.url, "gateway-0")
    gateway = await start()
    arrived = f"{time.time() - 0.2:.6f}".replace(".", "")
    assert await ask(gateway, **{"traceparent": PARENT, ARRIVED_HEADER: arrived}) == 200
    spans.stop()
    found = receiver.wait_for(TRACE, "choir.proxy", "POST /v1/predict")
    (proxy,), (span,) = found["choir.proxy"], found["POST /v1/predict"]
    assert (proxy.parent, span.parent) == (CLIENT, proxy.span)
    assert span.began - proxy.began >= 0.2


@pytest.mark.parametrize("arrived", ["", "yesterday", "-5", "1e15", "1" * 30, "9" * 16, "5", "²"])
async def test_a_time_that_makes_no_sense_makes_no_span(
    start: Start, receiver: Receiver, arrived: str
) -> None:
    spans.start(receiver.url, "gateway-0")
    gateway = await start()
    header = {ARRIVED_HEADER: arrived.encode("latin-1")}
    assert await ask(gateway, **{"traceparent": PARENT, **header}) == 200
    spans.stop()
    found = receiver.wait_for(TRACE, "POST /v1/predict")
    assert "choir.proxy" not in found
    assert found["POST /v1/predict"][0].parent == CLIENT


async def test_a_server_error_is_marked_and_says_nothing_of_the_input(
    start: Start, receiver: Receiver
) -> None:
    spans.start(receiver.url, "gateway-0")
    gateway = await start()
    gateway.engines.refusal = Refusal(500, "a secret text cannot be answered")
    assert await ask(gateway, traceparent=PARENT) == 500
    spans.stop()
    (span,) = receiver.wait_for(TRACE, "POST /v1/predict")["POST /v1/predict"]
    assert span.failed
    assert "secret" not in str(span)


async def test_a_trace_that_the_client_does_not_sample_is_not_exported(
    start: Start, receiver: Receiver
) -> None:
    spans.start(receiver.url, "gateway-0")
    gateway = await start()
    await ask(gateway, traceparent=PARENT[:-1] + "0")
    await gateway.http.get("/health", headers={"traceparent": PARENT})
    spans.stop()
    assert receiver.spans == []


async def test_without_an_endpoint_the_clients_headers_go_on_as_they_are(start: Start) -> None:
    gateway = await start()
    await ask(gateway, traceparent=PARENT)
    assert called(gateway).trace_headers == {"traceparent": PARENT}
    with spans.within("work") as span:
        assert span.headers is None
        assert spans.carried() is None


def fail_inside(outer: spans.Headers | None) -> None:
    with spans.within("inner"):
        assert spans.carried() != outer
        raise ValueError("a secret text")


async def test_what_is_inside_a_span_is_below_it(receiver: Receiver) -> None:
    spans.start(receiver.url, "engine-0")
    with spans.within("outer", {"traceparent": PARENT}) as outer:
        before = outer.headers
        with pytest.raises(ValueError, match="secret"):
            fail_inside(before)
    assert spans.carried() is None
    spans.stop()
    found = receiver.of(TRACE)
    (inner,), (first,) = found["inner"], found["outer"]
    assert (inner.parent, first.parent) == (first.span, CLIENT)
    assert inner.failed
    assert not first.failed
    assert "secret" not in str(inner)


@pytest.mark.parametrize(
    ("setting", "variables", "expected"),
    [
        (None, {}, None),
        ("http://a:1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:2"}, "http://a:1"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:2"}, "http://b:2"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:3/v1/traces"}, "http://c:3"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
    ],
)
def test_the_setting_wins_over_opentelemetrys_variables(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, variables: dict[str, str], expected: str
) -> None:
    for name in spans.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert spans.endpoint_of(setting) == expected


def test_what_is_not_installed_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'choir-serve\[otel\]'"):
        spans.check_installed()
