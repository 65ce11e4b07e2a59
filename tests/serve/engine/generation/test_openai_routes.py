"""How an answer of vLLM's routes ends, without an engine."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from transformers import AutoTokenizer
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from serve.engine.generation.client import GenerationContext
from serve.engine.generation.openai_routes import OpenAIRoutes
from serve.engine.interface import GenerateCall
from serve.engine.limits.fair_queue import FairQueue
from serve.errors import Refusal
from serve.images.limits import ImageLimits
from tests.serve import tiny
from tests.serve.engine.calls import version

CHUNK = b'data: {"id": "1", "choices": []}\n\n'
ERROR = b'data: {"error": {"message": "The KV cache is lost.", "type": "x", "param": null, "code": 500}}\n\n'
DONE = b"data: [DONE]\n\n"


def call(*, stream: bool) -> GenerateCall:
    return GenerateCall("talk@1", "completions", {"prompt": "x", "stream": stream}, "r")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny.causal_base(tmp_path_factory.mktemp("base")))


class Members:
    """An application that answers as vLLM's does: in a task of its own, while members generate."""

    def __init__(self, *events: bytes) -> None:
        self.app = FastAPI()
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        ensemble = version({}, "talk", {"a": None}).ensemble
        self.context = GenerationContext("talk@1", ensemble, [], FairQueue(4).for_call())
        self._events = events

        async def answer(body: dict[str, Any], raw_request: Request) -> Response:
            if body["stream"]:
                return StreamingResponse(self._stream(), media_type="text/event-stream")
            await self._generate()
            return Response()

        self.app.post("/v1/completions")(with_cancellation(answer))

    def routes(self, tokenizer: Any) -> OpenAIRoutes:
        config = SimpleNamespace(
            max_model_len=256, allowed_media_domains=None, allowed_local_media_path=""
        )
        renderer = SimpleNamespace(render_chat_async=None)  # no chat is rendered here
        llm: Any = SimpleNamespace(model_config=config, renderer=renderer)
        return OpenAIRoutes(self.app, llm, tokenizer, ImageLimits())

    async def _generate(self) -> None:
        with self.context.generating():
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()

    async def _stream(self) -> AsyncIterator[bytes]:
        for event in self._events:
            yield event
        if not self._events:
            await self._generate()


@pytest.mark.parametrize("stream", [True, False])
async def test_when_a_client_leaves_no_member_generates_any_more(
    tokenizer: Any, stream: bool
) -> None:
    members = Members()
    answer = members.routes(tokenizer).answer(call(stream=stream), members.context)
    asking = asyncio.create_task(anext(answer))
    await asyncio.wait_for(members.begun.wait(), 20)
    asking.cancel()
    await asyncio.wait([asking])
    assert members.ended.is_set()


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        ((CHUNK, DONE), [CHUNK, DONE]),
        ((ERROR, DONE), [Refusal(500, "The KV cache is lost.")]),
        ((CHUNK, ERROR, DONE), [CHUNK, Refusal(500, "The KV cache is lost.")]),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_the_reason(
    tokenizer: Any, events: tuple[bytes, ...], parts: list[bytes | Refusal]
) -> None:
    members = Members(*events)
    answer = members.routes(tokenizer).answer(call(stream=True), members.context)
    assert [part async for part in answer] == parts
