"""One small engine, shared by the tests that need no other settings."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.serve.engine import seeing_calls
from tests.serve.engine.calls import make_judge, make_models, start
from tests.serve.engine.fused import Judge
from tests.serve.seeing import Family, Reference


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


@pytest.fixture(scope="session", params=["idefics3", "llava", "llava-siglip"])
def family(request: pytest.FixtureRequest) -> Family:
    name: Family = request.param
    return name


@pytest.fixture(scope="session")
def seen(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return seeing_calls.make_models(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="session")
def seen_references(seen: dict[str, Path]) -> dict[str, Reference]:
    return seeing_calls.make_references(seen)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def seeing_engine(seen: dict[str, Path]) -> AsyncIterator[Any]:
    """An engine over a base that writes about images."""
    engine = await seeing_calls.start(seen)
    yield engine
    await engine.close()
