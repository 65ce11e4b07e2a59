"""`choir` whose calls go to engines as Ray Serve sends them by itself, to measure Choir's own router against it.

python -m tests.bench.load.rays_router serve BUNDLE --replicas 2"""

from pathlib import Path

from choir_cli.main import run
from serve.config.settings import Settings
from serve.graph import server

prepare_ray = server._prepare_ray


def prepare_ray_and_its_router(settings: Settings, folder: Path) -> str:
    said = prepare_ray(settings, folder)
    # Ray reads its options when it is imported, so not before.
    from ray.serve.config import RequestRouterConfig

    from serve.graph import app

    app.ENGINE_ROUTER = RequestRouterConfig()
    return said


if __name__ == "__main__":
    server._prepare_ray = prepare_ray_and_its_router
    run()
