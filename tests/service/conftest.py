"""One service of two engines and two gateways over a causal base, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.service.models import Models, make_models
from tests.service.running import Service, serving


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def service(models: Models) -> Iterator[Service]:
    config = models.root / "choir.yaml"
    config.write_text("chat: {enable_auto_tool_choice: true, tool_call_parser: hermes}\n")
    with serving(
        models.bundle,
        *("--config", config),
        *("--replicas", "2", "--gateways", "2", "--dtype", "float32"),
        *("--adapter-root", models.root / "adapters"),
        *("--engine", '{"kv_cache_memory_bytes": 268435456}'),
        log=models.root / "serve.log",
    ) as running:
        yield running
