"""One server of two engines, which a Prometheus scrapes and which sends its spans to a receiver."""

from collections.abc import Iterator

import pytest
import yaml

from tests.service.models import Models, make_models
from tests.service.running import Service, serving
from tests.watching.prometheus import Prometheus, scraping
from tests.watching.receiver import Receiver, receiving

PLACES = 16
LEASE = 14
TIMEOUT = 9


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("watching"))


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="session")
def service(models: Models, receiver: Receiver) -> Iterator[Service]:
    settings = models.root / "settings.yaml"
    settings.write_text(
        yaml.safe_dump(
            {
                "lease_seconds": LEASE,
                "max_in_flight": PLACES,
                "request_timeout_seconds": TIMEOUT,
                "otlp_endpoint": receiver.url,
            }
        )
    )
    with serving(
        models.bundle,
        *("--replicas", "2", "--dtype", "float32", "--config", settings),
        *("--adapter-root", models.root / "adapters"),
        *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        log=models.root / "serve.log",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with scraping(service.url, tmp_path_factory.mktemp("prometheus"), "6s") as started:
        yield started
