"""`choir` whose calls go to engines as Ray Serve sends them by itself, to measure Choir's own router against it.

python -m tests.bench.load.rays_router serve BUNDLE --replicas 2"""

from ray.serve.config import RequestRouterConfig

from choir_cli.main import run
from serve.graph import app

if __name__ == "__main__":
    app.ENGINE_ROUTER = RequestRouterConfig()
    run()
