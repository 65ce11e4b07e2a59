"""A server that is only a function (httpx.MockTransport), and both clients in front of it."""

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from choir_client import AsyncChoir, Choir, Retries

Answer = httpx.Response | Exception


class FakeServer:
    """Gives the scripted answers in turn (the last one for ever) and keeps the requests it got."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.script: list[Answer | Callable[[httpx.Request], Answer]] = []

    def answer(self, *script: Answer | Callable[[httpx.Request], Answer]) -> None:
        self.script = list(script)

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        answer = step(request) if callable(step) else step
        if isinstance(answer, Exception):
            raise answer
        # A response can be read once only, and an answer may be given many times.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Blocking:
    """`AsyncChoir` driven step by step, so that one test covers both clients."""

    def __init__(self, client: AsyncChoir) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._loop.run_until_complete(result)
            return self._iterate(result)

        return call

    def _iterate(self, chunks: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(chunks))
            except StopAsyncIteration:
                return

    def stop(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    """Each of the two clients, with retries that do not wait."""
    options: dict[str, Any] = {
        "token": "secret",
        "retries": Retries(attempts=3, first_pause=0.0),
        "transport": httpx.MockTransport(server),
    }
    if request.param == "sync":
        with Choir("http://choir.test", **options) as choir:
            yield choir
    else:
        blocking = Blocking(AsyncChoir("http://choir.test", **options))
        yield blocking
        blocking.stop()


ROLLOUT = {"id": "r1", "state": "done", "from": 3, "to": 4, "replicas": 2, "reason": None}


def prediction(request: httpx.Request) -> httpx.Response:
    """What a server answers: label = the text, model = what `intents` resolves to."""
    body = json.loads(request.content)
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [
        {"index": i, "label": text, "probabilities": {text: 1.0}, "entropy": 0.0}
        for i, text in enumerate(texts)
    ]
    model = body["model"] if "@" in body["model"] else f"{body['model']}@3"
    usage = {"prompt_tokens": len(texts), "member_tokens": 3 * len(texts)}
    return httpx.Response(
        200, json={"object": "list", "model": model, "data": data, "usage": usage}
    )


def error(status: int, message: str = "no", **headers: str) -> httpx.Response:
    body = {"error": {"message": message, "type": "some_error", "param": "model", "code": "c"}}
    return httpx.Response(status, json=body, headers=headers)
