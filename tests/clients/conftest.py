"""Servers to test against: one is only a function (httpx.MockTransport), one is real HTTP."""

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@dataclass
class LocalServer:
    """Real HTTP on loopback with fixed answers; keeps what it was sent."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def local_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    local = LocalServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            local.paths.append(f"{self.command} {self.path}")
            if length:
                local.bodies.append(json.loads(self.rfile.read(length)))
            route = f"{self.command} {self.path.partition('?')[0]}"
            status, body = local.answers.get(route, (404, {"error": {"message": "no route"}}))
            events = isinstance(body, str) and body.startswith("data:")
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if events else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    local.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("CHOIR_URL", local.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield local
    http.shutdown()
    http.server_close()
    thread.join()
