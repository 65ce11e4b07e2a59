"""Prefix and prompt adapters in an engine with two tensor parallel ranks."""

from pathlib import Path

import pytest

from tests.serve.engine.calls import ask, greedy, prompts
from tests.serve.engine.fused import averaged
from tests.serve.engine.soft_calls import MIXED, make_judge, make_models, start, sweep

pytestmark = [pytest.mark.engine, pytest.mark.slow]


async def test_two_tensor_parallel_ranks_equal_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank writes its own heads of a prefix."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    models = make_models(tmp_path)
    judge = make_judge(models)
    engine = await start(models, tensor_parallel_size=2)
    try:
        texts = prompts(6, seed=1)
        await sweep(engine, judge, texts, seed=2)
        for text in texts[:3]:
            answer = await ask(engine, greedy(text, 12), "mixed")
            judge.check(answer["choices"][0], [(name, text) for name in MIXED], averaged([0.2] * 5))
    finally:
        await engine.close()
