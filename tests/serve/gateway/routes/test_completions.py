"""Completions and chats with a faked engine: what the engine gets, and how answers and streams end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve.engine.interface import GenerateCall
from serve.errors import Refusal
from serve.gateway.links import Unavailable
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import desired, ensemble, held, listening

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
PROMPT = {"model": "replies", "prompt": "hello"}
PATIENCE = 10
"""Seconds to wait for a condition before a test fails."""


@pytest.mark.parametrize(("path", "route"), [(COMPLETIONS, "completions"), (CHAT, "chat")])
async def test_the_body_goes_to_the_engine_without_fusion(
    gateway: Gateway, path: str, route: str
) -> None:
    body = {"model": "replies/a", "anything": [1, {"of": "vllm's"}], "temperature": 0.5}
    fusion = {"method": "vote", "weights": {"a": -1}, "prompts": {"b": "hi"}}
    response = await gateway.http.post(
        path,
        json={**body, "fusion": {**fusion, "return_members": True}},
        headers={"x-request-id": "mine", "traceparent": "00-1-2-01"},
    )
    assert gateway.engines.calls == [
        GenerateCall(
            version="replies@1",
            route=route,  # type: ignore[arg-type]
            body=body,
            request_id="mine",
            member="a",
            method="vote",
            weights={"a": -1},
            prompts={"b": "hi"},
            return_members=True,
            trace_headers={"traceparent": "00-1-2-01"},
        )
    ]
    assert response.content == b'{"object": "text_completion"}'
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-choir-model"] == "replies@1/a"


async def test_a_response_is_asked_of_the_engine(gateway: Gateway) -> None:
    body = {"model": "replies", "input": "hello", "store": True}
    fusion = {"method": "average", "weights": {"a": 1}, "plausibility": 0.1}
    answer = await gateway.http.post(RESPONSES, json={**body, "fusion": fusion})
    assert answer.headers["x-choir-model"] == "replies@1"
    (call,) = gateway.engines.calls
    assert isinstance(call, GenerateCall)
    assert (call.route, call.body, call.method, call.plausibility) == (
        "responses",
        body,
        "average",
        0.1,
    )
    streamed = await gateway.http.post(RESPONSES, json={**body, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("fusion", [{"prompts": {"a": "x"}}, {"return_members": True}])
async def test_what_a_response_cannot_tell_is_refused(gateway: Gateway, fusion: Any) -> None:
    body = {"model": "replies", "input": "hello", "fusion": fusion}
    error = refused(await gateway.http.post(RESPONSES, json=body), 400, COMPLETIONS)
    assert error["param"] == f"fusion.{next(iter(fusion))}"
    assert gateway.engines.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"fusion": "vote"}, "fusion"),
        ({"fusion": {"method": "sum"}}, "fusion"),
        ({"fusion": {"prompts": {"a": 1}}}, "fusion"),
        ({"fusion": {"colour": 1}}, "fusion"),
    ],
)
async def test_an_error_names_the_wrong_field(
    gateway: Gateway, fields: dict[str, Any], param: str
) -> None:
    error = refused(await gateway.http.post(COMPLETIONS, json=PROMPT | fields), 400, param)
    assert error["param"] == param
    assert gateway.engines.calls == []


async def test_unknown_models(gateway: Gateway) -> None:
    response = await gateway.http.post(CHAT, json={"model": "nobody", "stream": True})
    assert refused(response, 404, "nobody")["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_has_its_status_also_for_a_stream(gateway: Gateway, stream: bool) -> None:
    gateway.engines.refusal = Refusal(400, "messages: too long.", param="messages")
    response = await gateway.http.post(COMPLETIONS, json=PROMPT | {"stream": stream})
    assert refused(response, 400, "too long")["param"] == "messages"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_version_that_a_swap_unloaded_is_resolved_once_more(
    gateway: Gateway, stream: bool
) -> None:
    gateway.engines.loaded = {"replies@2"}
    gateway.controller.will_say(desired(held(ensemble("replies", 2, "generation"))))
    response = await gateway.http.post(COMPLETIONS, json=PROMPT | {"stream": stream})
    assert response.status_code == 200
    assert response.headers["x-choir-model"] == "replies@2"
    assert [call.version for call in gateway.engines.calls] == ["replies@1", "replies@2"]


async def test_an_engine_that_cannot_be_reached_is_a_503(gateway: Gateway) -> None:
    gateway.engines.error = Unavailable("No engine is running.")
    refused(await gateway.http.post(CHAT, json=PROMPT | {"stream": True}), 503, "No engine")


async def test_each_part_of_a_stream_is_passed_on_at_once(gateway: Gateway) -> None:
    events = [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
    read = [asyncio.Event() for _ in events]

    async def parts() -> AsyncIterator[bytes]:
        for number, event in enumerate(events):
            yield event
            await read[number].wait()  # the next one is made once the client has read this one

    gateway.engines.parts = parts
    async with (
        listening(gateway.app) as url,
        httpx.AsyncClient() as client,
        client.stream("POST", url + COMPLETIONS, json=PROMPT | {"stream": True}) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-choir-model"] == "replies@1"
        received: list[bytes] = []
        async with asyncio.timeout(PATIENCE):
            async for part in response.aiter_raw():
                read[len(received)].set()
                received.append(part)
    assert received == events
    assert gateway.engines.ended.is_set()


async def test_a_stream_that_breaks_off_ends_with_an_error_event(gateway: Gateway) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise Unavailable("The engine died.")

    gateway.engines.parts = parts
    response = await gateway.http.post(COMPLETIONS, json=PROMPT | {"stream": True})
    first, error, rest = response.text.split("\n\n")
    assert (response.status_code, first, rest) == (200, "data: 1", "")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "The engine died."


async def test_an_unexpected_error_in_a_stream_is_not_shown(gateway: Gateway) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise RuntimeError("a secret of the inside")

    gateway.engines.parts = parts
    response = await gateway.http.post(COMPLETIONS, json=PROMPT | {"stream": True})
    assert "secret" not in response.text
    assert '"error"' in response.text


async def test_a_client_that_leaves_a_stream_ends_it_in_the_engine(gateway: Gateway) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()

    gateway.engines.parts = parts
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        body = PROMPT | {"stream": True}
        async with client.stream("POST", url + COMPLETIONS, json=body) as response:
            assert await anext(response.aiter_raw()) == b"data: 1\n\n"
            assert not gateway.engines.ended.is_set()
        await asyncio.wait_for(gateway.engines.ended.wait(), PATIENCE)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_answer_ends_the_engines_work(
    gateway: Gateway, stream: bool
) -> None:
    gateway.engines.stuck = asyncio.Event()
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        body = PROMPT | {"stream": stream}
        asking = asyncio.create_task(client.post(url + COMPLETIONS, json=body))
        await asyncio.wait_for(gateway.engines.stuck.wait(), PATIENCE)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.wait_for(gateway.engines.ended.wait(), PATIENCE)


async def test_a_stream_that_does_not_begin_in_time_is_a_503(start: Start) -> None:
    gateway = await start(request_timeout_seconds=0.5)
    gateway.engines.stuck = asyncio.Event()
    response = await gateway.http.post(COMPLETIONS, json=PROMPT | {"stream": True})
    refused(response, 503, "0.5 seconds")
    assert gateway.engines.ended.is_set()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["hello"] * 5}, "prompt"),
        ({"prompt": [[1, 2]] * 5}, "prompt"),
        ({"prompt": ["hello"] * 3, "n": 2}, "prompt"),
        ({"prompt": "hello", "n": 5}, "n"),
    ],
)
async def test_more_answers_than_a_request_may_have_are_refused(
    start: Start, fields: dict[str, Any], param: str
) -> None:
    gateway = await start(max_inputs=4)
    response = await gateway.http.post(COMPLETIONS, json={"model": "replies", **fields})
    assert refused(response, 400, "the 4 answers that one request may have")["param"] == param
    assert gateway.engines.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["hello"] * 2, "n": 2},
        {"prompt": [1] * 100},
        {"prompt": []},
        {"prompt": 7, "n": "x"},
        {"messages": [{}] * 100},
    ],
)
async def test_allowed_numbers_and_values_of_a_wrong_type_reach_the_engine(
    start: Start, fields: dict[str, Any]
) -> None:
    gateway = await start(max_inputs=4)
    await gateway.http.post(COMPLETIONS, json={"model": "replies", **fields})
    assert len(gateway.engines.calls) == 1
