"""All ways in which a version can fail: what the client gets, and that the failure counts for the version."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from serve.control.rollout.gates import judge
from serve.engine.interface import GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.gateway.dispatch import outcome
from serve.gateway.links import Unavailable
from serve.protocol.figures import Figures, Tally
from tests.serve.fakes import until
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.dispatch.test_trials import (
    CHAT,
    GREEDY,
    answering,
    events,
    figures,
    trying,
)
from tests.serve.gateway.fakes import listening, prediction
from tests.serve.gateway.http.test_observe import counted, samples, series

STREAM = GREEDY | {"stream": True}
WHOLE = events("It ", "is lost.")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "PAUSES", (0.0, 0.0, 0.0))


def tally(gateway: Gateway) -> tuple[int, int]:
    """Return the requests and the errors of the candidate."""
    candidate = figures(gateway).candidate
    return candidate.requests, candidate.errors


def raises(error: Exception) -> Callable[[PredictCall], Prediction]:
    def fail(call: PredictCall) -> Prediction:
        if call.version == "intents@4":
            raise error
        return prediction(call)

    return fail


def without_labels(call: PredictCall) -> Prediction:
    """Let the candidate give an answer that cannot be written as a document."""
    given = prediction(call)
    if call.version == "intents@4":
        object.__setattr__(given, "labels", given.labels[:1])
    return given


WAYS = [
    (raises(RuntimeError("the engine raised")), 500),
    (raises(ValueError("the engine refused its own input")), 500),
    (raises(Unavailable("gone")), 503),
    (without_labels, 500),
]


@pytest.mark.parametrize(("answer", "status"), WAYS)
async def test_every_exception_of_a_canary_is_its_error(
    start: Start, answer: Callable[[PredictCall], Prediction], status: int
) -> None:
    gateway = await start(trying(share=1))
    gateway.engines.prediction = answer
    refused(await gateway.predict(), status)
    assert tally(gateway) == (1, 1)
    assert figures(gateway).stable == Tally()


@pytest.mark.parametrize(("answer", "status"), WAYS)
async def test_every_exception_of_a_shadow_is_its_error(
    start: Start, answer: Callable[[PredictCall], Prediction], status: int
) -> None:
    gateway = await start(trying("shadow", 1.0))
    gateway.engines.prediction = answer
    before = samples()
    assert (await gateway.predict()).status_code == 200
    await until(lambda: tally(gateway) == (1, 1))
    assert figures(gateway).stable.errors == figures(gateway).compared == 0
    shadow = {"ensemble": "intents", "route": "/v1/predict", "track": "shadow"}
    assert counted(before, "choir_requests_total")[series(**shadow, status=str(status))] == 1


async def test_a_canary_that_always_raises_fails_its_gates(start: Start) -> None:
    state = trying(share=1, max_error_rate=0, min_requests=10)
    gateway = await start(state)
    gateway.engines.prediction = raises(RuntimeError("the engine raised"))
    for _ in range(10):
        refused(await gateway.predict(), 500)
    strategy = next(each.trial for each in state.versions if each.trial)
    verdict = judge(strategy, figures(gateway), 1.0)
    assert verdict is not None
    assert verdict.outcome == "failed"
    assert "10 of 10 requests to the candidate failed" in verdict.reason


async def test_an_answer_that_never_comes_is_an_error(start: Start) -> None:
    gateway = await start(trying(share=1), request_timeout_seconds=0.5)
    gateway.engines.stuck = asyncio.Event()
    refused(await gateway.predict(), 503, "0.5 seconds")
    assert tally(gateway) == (1, 1)


async def test_an_empty_answer_is_an_error(start: Start) -> None:
    gateway = await start(trying(share=1, task="generation"))
    answering(gateway, {"replies@4": []})
    for body in (GREEDY, STREAM):
        refused(await gateway.http.post(CHAT, json=body), 503, "before it began")
    assert tally(gateway) == (2, 2)


def breaking(gateway: Gateway, how: Exception | Refusal | None) -> None:
    """Let the candidate's streams break off like this after their first part; None: let them stall."""

    async def generate(call: GenerateCall) -> AsyncIterator[bytes | Refusal]:
        yield WHOLE[0]
        if call.version == "replies@4":
            if isinstance(how, Exception):
                raise how
            if how is None:
                await asyncio.Event().wait()
            else:
                yield how
                return
        for part in WHOLE[1:]:
            yield part

    gateway.engines.generate = generate  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (RuntimeError("a secret of the inside"), "The stream broke off."),
        (Unavailable("The engine died."), "The engine died."),
        (Refusal(500, "The engine ended the request."), "The engine ended the request."),
        (Refusal(400, "There is no room for it any more."), "There is no room for it any more."),
    ],
)
async def test_a_stream_of_a_canary_that_breaks_off_is_its_error(
    start: Start, how: Exception | Refusal, message: str
) -> None:
    gateway = await start(trying(share=1, task="generation"))
    breaking(gateway, how)
    response = await gateway.http.post(CHAT, json=STREAM)
    first, error, rest = response.text.split("\n\n")
    assert (f"{first}\n\n".encode(), rest) == (WHOLE[0], "")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == message
    assert tally(gateway) == (1, 1)


@pytest.mark.parametrize("how", [RuntimeError("inside"), Unavailable("gone"), Refusal(500, "x")])
async def test_a_stream_of_a_shadow_that_breaks_off_is_its_error(
    start: Start, how: Exception | Refusal
) -> None:
    gateway = await start(trying("shadow", 1.0, task="generation"))
    breaking(gateway, how)
    response = await gateway.http.post(CHAT, json=STREAM)
    assert response.content == b"".join(WHOLE)
    await until(lambda: tally(gateway) == (1, 1))
    assert figures(gateway).stable == Tally(1, 0, figures(gateway).stable.seconds)
    assert figures(gateway).compared == 0


async def test_a_stream_of_a_shadow_that_stalls_is_its_error(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0, task="generation"), request_timeout_seconds=0.5)
    breaking(gateway, None)
    assert (await gateway.http.post(CHAT, json=STREAM)).status_code == 200
    await until(lambda: tally(gateway) == (1, 1))


async def test_a_stream_is_counted_once_with_the_time_of_its_first_part(start: Start) -> None:
    gateway = await start(trying(share=1, task="generation"))
    read = asyncio.Event()

    async def generate(call: GenerateCall) -> AsyncIterator[bytes | Refusal]:
        yield WHOLE[0]
        await read.wait()
        await asyncio.sleep(0.2)
        for part in WHOLE[1:]:
            yield part

    gateway.engines.generate = generate  # type: ignore[assignment, method-assign]
    async with (
        listening(gateway.app) as url,
        httpx.AsyncClient() as client,
        client.stream("POST", url + CHAT, json=STREAM) as response,
    ):
        parts = response.aiter_raw()
        assert await anext(parts) == WHOLE[0]
        assert figures(gateway) == Figures()  # it may still break off
        read.set()
        assert b"".join([part async for part in parts]) == b"".join(WHOLE[1:])
    assert tally(gateway) == (1, 0)
    assert figures(gateway).candidate.seconds < 0.2


@pytest.mark.parametrize(("leaves_after", "requests"), [(WHOLE[0], 0), (WHOLE[-1], 1)])
async def test_a_stream_that_its_client_leaves_counts_only_if_it_was_complete(
    start: Start, leaves_after: bytes, requests: int
) -> None:
    gateway = await start(trying(share=1, task="generation"))
    ended = asyncio.Event()

    async def generate(call: GenerateCall) -> AsyncIterator[bytes | Refusal]:
        try:
            for part in WHOLE:
                yield part
                if part == leaves_after:
                    await asyncio.Event().wait()
        finally:
            ended.set()

    gateway.engines.generate = generate  # type: ignore[assignment, method-assign]
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        async with client.stream("POST", url + CHAT, json=STREAM) as response:
            received = b""
            async for part in response.aiter_raw():
                received += part
                if received.endswith(leaves_after):
                    break
        async with asyncio.timeout(20):
            await ended.wait()
    assert tally(gateway) == (requests, 0)


async def test_another_engine_is_asked_while_engines_are_gone_before_they_begin(
    start: Start,
) -> None:
    gateway = await start(trying(share=1))
    gateway.engines.errors = [Unavailable("being replaced", begun=False)] * 3
    assert (await gateway.predict()).status_code == 200
    assert tally(gateway) == (1, 0)
    gateway.engines.errors = [Unavailable("being replaced", begun=False)] * 4
    refused(await gateway.predict(), 503, "being replaced")
    assert tally(gateway) == (2, 1)


async def test_a_request_that_crashes_engines_is_sent_only_twice(start: Start) -> None:
    gateway = await start()
    gateway.engines.errors = [Unavailable("died")]
    assert (await gateway.predict()).status_code == 200
    gateway.engines.calls.clear()
    gateway.engines.errors = [
        Unavailable("died"),
        Unavailable("being replaced", begun=False),
        Unavailable("died"),
    ]
    refused(await gateway.predict(), 503, "died")
    assert len(gateway.engines.calls) == 3
