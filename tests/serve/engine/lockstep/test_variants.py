"""The other schedulers in a real engine: asynchronous bookkeeping, and vLLM's own as a negative control."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.engine.vllm_hooks import arguments
from tests.serve.engine.calls import compare, make_judge, make_models, prompts, start

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("variants"))


@asynccontextmanager
async def engine_with(scheduler: str, models: Any, patch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    patch.setattr(arguments, "SCHEDULER", scheduler)
    engine = await start(models)
    try:
        yield engine
    finally:
        await engine.close()


async def test_the_asynchronous_scheduler_equals_peft(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_with(arguments.ASYNC_SCHEDULER, models, monkeypatch) as engine:
        await compare(engine, make_judge(models), prompts(40, seed=21), seed=22)


async def test_members_diverge_under_vllms_own_scheduler(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same processor under the stock scheduler: the comparison can fail, so it means something where it holds."""
    stock = "vllm.v1.core.sched.scheduler.Scheduler"
    async with engine_with(stock, models, monkeypatch) as engine:
        with pytest.raises(AssertionError, match="not the reference's token"):
            await compare(engine, make_judge(models), prompts(12, seed=23), seed=24)
