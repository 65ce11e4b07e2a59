"""Serves requests that do nothing, through a proxy, a gateway and a hop to an engine.

    python -m tests.bench.load.empty defaults|choir PORT FOLDER

starts a Ray of its own, prints `ready`, and serves until its standard input ends. `defaults` takes Ray Serve as it
comes; `choir` takes the options, the middleware and the link to engines of a real server."""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from serve import ray_options

PATH = "/empty"
HERE = "/here"
"""A route that the gateway answers alone."""
PARTS = 8
"""Of a streamed answer."""


def main(how: str, port: int, folder: Path) -> None:
    if how == "choir":
        os.environ.update(ray_options.own_cluster() | ray_options.fast_serve(folder))
    import ray
    from fastapi import FastAPI, Response
    from fastapi.responses import StreamingResponse
    from ray import serve as ray_serve
    from ray.serve.handle import DeploymentHandle

    from serve.engine.interface import GenerateCall, PredictCall, Text
    from serve.errors import Refusal
    from serve.graph.app import UNBOUNDED
    from serve.graph.ray_links import RayEngines

    call = PredictCall("intents@1", (Text("where is my card"),), "request")
    generating = GenerateCall("replies@1", "completions", {"prompt": "x"}, "request")

    class Engine:
        async def predict(self, call: PredictCall) -> Any:
            return Refusal(200, "empty")

        async def generate(self, call: GenerateCall) -> AsyncGenerator[bytes, None]:
            for _ in range(PARTS):
                yield b"data: empty\n\n"

    @ray_serve.ingress()
    class Gateway:
        def __init__(self, engines: DeploymentHandle) -> None:
            self._engines = RayEngines({"": engines})

        def __serve_build_asgi_app__(self) -> FastAPI:
            app = FastAPI()

            @app.post(PATH)
            async def empty() -> Response:
                await self._engines.predict(call)
                return Response(b"{}")

            @app.post(PATH + "/stream")
            async def stream() -> Response:
                return StreamingResponse(self._engines.generate(generating))  # type: ignore[arg-type]

            @app.post(HERE)
            async def here() -> Response:
                return Response(b"{}")

            return app

    def deployment(shell: type) -> Any:
        options = {"num_cpus": 0, "runtime_env": {"env_vars": ray_options.INGRESS}}
        plain = ray_serve.deployment(shell).options(ray_actor_options={"num_cpus": 0})
        if how == "defaults":
            return plain
        return plain.options(
            max_ongoing_requests=UNBOUNDED,
            logging_config={"enable_access_log": False},
            ray_actor_options=options,
        )

    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 << 20,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    ray_serve.run(deployment(Gateway).bind(deployment(Engine).bind()), name="empty")
    print("ready", flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
