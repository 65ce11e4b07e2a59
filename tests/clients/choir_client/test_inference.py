"""Predictions and streams: the requests that the client sends, and the answers that it returns."""

import json
from typing import Any

import httpx
import pytest

from choir_client import ConnectionFailed, NotFound, Unavailable
from tests.clients.choir_client.conftest import FakeServer, error, prediction


class TestPredict:
    def test_sends_the_contract_and_reads_the_answer(self, client: Any, server: FakeServer) -> None:
        server.answer(prediction)
        answer = client.predict(
            "intents", ["a", "b"], fusion={"method": "vote"}, return_members=True
        )
        (request,) = server.requests
        assert request.method == "POST"
        assert request.url == "http://choir.test/v1/predict"
        assert request.headers["authorization"] == "Bearer secret"
        assert server.bodies() == [
            {
                "model": "intents",
                "input": ["a", "b"],
                "fusion": {"method": "vote"},
                "return_members": True,
            }
        ]
        assert answer.model == "intents@3"
        assert answer.labels == ["a", "b"]
        assert answer.usage.member_tokens == 6

    def test_a_large_batch_is_sent_in_parts_to_one_version(
        self, client: Any, server: FakeServer
    ) -> None:
        texts = [f"text {i}" for i in range(2500)]
        server.answer(prediction)
        answer = client.predict("intents", texts)
        assert [len(body["input"]) for body in server.bodies()] == [1024, 1024, 452]
        assert [body["model"] for body in server.bodies()] == ["intents", "intents@3", "intents@3"]
        assert answer.labels == texts
        assert [item.index for item in answer.data] == list(range(2500))
        assert answer.usage.prompt_tokens == 2500
        assert answer.usage.member_tokens == 7500

    def test_fields_of_a_newer_server_are_kept(self, client: Any, server: FakeServer) -> None:
        body = json.loads(
            prediction(httpx.Request("POST", "/", json={"model": "i", "input": "a"})).content
        )
        server.answer(httpx.Response(200, json={**body, "experiment": "blue"}))
        assert client.predict("i", "a").experiment == "blue"


def stream(content: bytes) -> httpx.Response:
    return httpx.Response(
        200, content=content, headers={"content-type": "text/event-stream; charset=utf-8"}
    )


class TestStreaming:
    EVENTS = (
        b": keep-alive\n\n"
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[{"index":0,"delta":{"content":" you"}}]}\n\n'
        b'data: {"model":"replies@1","choices":[],"usage":{"prompt_tokens":3}}\n\n'
    )

    def test_yields_the_chunks(self, client: Any, server: FakeServer) -> None:
        server.answer(stream(self.EVENTS + b"data: [DONE]\n\n"))
        chunks = list(client.stream_chat("replies", [{"role": "user", "content": "hi"}]))
        assert "".join(chunk.text for chunk in chunks) == "Hello you"
        assert chunks[-1].usage.prompt_tokens == 3
        assert server.bodies()[0]["stream"] is True

    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
    def test_a_text_may_hold_unicode_line_separators(
        self, client: Any, server: FakeServer, line_end: bytes
    ) -> None:
        """JSON need not escape these characters, and pydantic, with which vLLM writes its events, does not."""
        text = "one\u2028two\u2029three\u0085four\x1cfive\x0bsix\x0cseven"
        choices = [{"index": 0, "delta": {"content": text}}]
        chunk = json.dumps({"model": "replies@1", "choices": choices}, ensure_ascii=False)
        events = f"data: {chunk}\n\ndata: [DONE]\n\n".encode()
        server.answer(stream(events.replace(b"\n", line_end)))
        assert [chunk.text for chunk in client.stream_chat("replies", [])] == [text]

    def test_a_stream_that_breaks_off_is_an_error(self, client: Any, server: FakeServer) -> None:
        server.answer(stream(self.EVENTS))
        with pytest.raises(ConnectionFailed, match="before the answer was complete"):
            list(client.stream_chat("replies", []))

    def test_an_error_inside_the_stream_is_raised(self, client: Any, server: FakeServer) -> None:
        event = b'data: {"error":{"message":"gone","type":"x","code":503}}\n\n'
        server.answer(stream(self.EVENTS + event))
        with pytest.raises(Unavailable, match="gone"):
            list(client.stream_chat("replies", []))

    def test_a_refused_stream_is_an_api_error(self, client: Any, server: FakeServer) -> None:
        server.answer(error(404, "no such model"))
        with pytest.raises(NotFound, match="no such model"):
            list(client.stream_complete("nobody", "hi"))
