"""Replaces two engines of a Ray Serve graph with Choir's options by one while calls run, and prints what became of
them.

    python -m tests.serve.graph.draining FOLDER

prints one JSON object: `begun`, the process that answered each call which ran when the engines were stopped; `later`,
that of each call which was sent while they drained, or the name of an error."""

import asyncio
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from serve import ray_options

SECONDS = 6.0
"""Of a call that runs when an engine is stopped."""
CALLS = 6


def main(folder: Path) -> None:
    os.environ.update(
        ray_options.own_cluster() | ray_options.fast_serve(folder) | {"CHOIR_HAPROXY": "0"}
    )
    import ray
    from ray import serve as ray_serve
    from ray.serve.handle import DeploymentHandle

    from serve.engine.interface import PredictCall
    from serve.graph.app import DRAINING_SECONDS, _deployment
    from serve.graph.ray_links import RayEngines

    class Engine:
        async def predict(self, call: PredictCall) -> Any:
            await asyncio.sleep(float(call.request_id))
            return os.getpid()

    class Gateway:
        def __init__(self, engines: DeploymentHandle) -> None:
            self._engines = RayEngines({"": engines})

        async def ask(self, seconds: float, count: int) -> list[Any]:
            calls = [
                self._engines.predict(PredictCall("a@1", (), str(seconds))) for _ in range(count)
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            return [each if isinstance(each, int) else repr(each) for each in answers]

    def graph(engines: int) -> Any:
        plain = {
            "ray_actor_options": {"num_cpus": 0},
            "graceful_shutdown_timeout_s": DRAINING_SECONDS,
        }
        engine = _deployment(Engine, "Engine", {"num_replicas": engines}, **plain).bind()
        return _deployment(Gateway, "Gateway", {"num_replicas": 1}, **plain).bind(engine)

    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 << 20,
    )
    gateway = ray_serve.run(graph(2), route_prefix=None)
    if not gateway.is_initialized:
        gateway._init(_run_router_in_separate_loop=True)
    # Ray sends calls that come at the same instant to the same engine.
    engines: set[Any] = set()
    while len(engines) < 2:
        engines |= {*gateway.ask.remote(0.0, 1).result()}
    begun = []
    for _ in range(CALLS):
        begun.append(gateway.ask.remote(SECONDS, 1))
        gateway.ask.remote(0.0, 1).result()
    fewer = threading.Thread(target=lambda: ray_serve.run(graph(1), route_prefix=None))
    fewer.start()
    later: list[Any] = []
    while len(later) < 20 or len({*later[-20:]}) > 1:
        later += gateway.ask.remote(0.01, 1).result()
    fewer.join()
    print(
        json.dumps(
            {"engines": [*engines], "begun": [each.result()[0] for each in begun], "later": later}
        )
    )
    ray_serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
