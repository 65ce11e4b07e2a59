"""One small engine, shared by the tests that need no other settings."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.serve.engine.calls import make_judge, make_models, start
from tests.serve.engine.fused import Judge


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("lockstep"))


@pytest.fixture(scope="session")
def judge(models: dict[str, Path]) -> Judge:
    return make_judge(models)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    engine = await start(models)
    yield engine
    await engine.close()
