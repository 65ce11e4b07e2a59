"""A real HTTP server on loopback with fixed answers, for tests of the command and of the demo."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


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
