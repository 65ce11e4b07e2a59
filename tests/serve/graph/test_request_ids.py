"""Answers of a real Ray Serve carry one request id, behind HAProxy and behind Ray's own proxy."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

SERVER = """
import http.client, json, os
from pathlib import Path
from serve import ray_options

folder = Path(os.environ["FOLDER"])
os.environ.update(ray_options.own_cluster() | ray_options.fast_serve(folder))

from fastapi import FastAPI
from ray import serve as ray_serve
from starlette.responses import StreamingResponse
from serve.config.settings import Settings
from serve.gateway.http.errors import install_handlers
from serve.gateway.http.observe import Observer
from serve.graph.cluster import _listen, _own


@ray_serve.deployment(ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": ray_options.INGRESS}})
@ray_serve.ingress()
class Gateway:
    def __serve_build_asgi_app__(self):
        app = FastAPI()
        install_handlers(app)

        @app.get("/ok")
        async def ok():
            return {}

        @app.get("/boom")
        async def boom():
            raise RuntimeError

        @app.get("/stream")
        async def stream():
            async def parts():
                for _ in range(3):
                    yield b"data: x\\n\\n"
            return StreamingResponse(parts(), media_type="text/event-stream")

        app.add_middleware(Observer)
        return app


port = ray_options.free_port()
seen = []
with _own(folder):
    _listen(Settings.model_validate({"bundles": [Path("bundle")], "port": port}))
    ray_serve.run(Gateway.bind(), name="choir", route_prefix="/")
    for path, given in json.loads(os.environ["ASKED"]):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers={} if given is None else {"X-Request-Id": given})
        answer = connection.getresponse()
        answer.read()
        seen.append([answer.status, answer.headers.get_all("x-request-id") or []])
        connection.close()
print("SEEN", json.dumps(seen))
"""
ASKED: list[tuple[str, str | None, int]] = [
    ("/ok", None, 200),
    ("/ok", "mine", 200),
    ("/ok", "x" * 200, 200),
    ("/stream", "mine", 200),
    ("/stream", None, 200),
    ("/missing", "mine", 404),
    ("/boom", "mine", 500),
    ("/-/routes", None, 404),
]


@pytest.mark.slow
@pytest.mark.parametrize("haproxy", ["1", "0"], ids=["HAProxy", "Ray's proxy"])
def test_an_answer_has_one_request_id(haproxy: str) -> None:
    asked = json.dumps([each[:2] for each in ASKED])
    # Not below pytest's own folder: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="choir-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", SERVER],
            env={**os.environ, "CHOIR_HAPROXY": haproxy, "ASKED": asked, "FOLDER": folder},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.rpartition("SEEN")[2])
    assert [status for status, _ in seen] == [status for _, _, status in ASKED]
    assert [len(ids) for _, ids in seen] == [1] * len(ASKED)
    for (_, given, _), (_, [found]) in zip(ASKED, seen, strict=True):
        assert (found == given) == (given == "mine")
