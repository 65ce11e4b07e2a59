"""A real language model of 135M parameters in float32: each member against PEFT."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.engine.interface import EngineSettings
from serve.errors import Refusal
from tests.serve import tiny
from tests.serve.engine.calls import ask, greedy, version
from tests.serve.engine.fused import Judge, averaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

MEMBERS = {"a": ["a"], "b": ["b"], "prefix": ["prefix"], "plain": []}
TOKENS = 16
TEXTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "name[The Eagle], eatType[coffee shop], food[French]\nDescription:",
    "In 2024,",
)


@pytest.fixture(scope="module")
def models(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {
        "base": smollm2,
        "a": tiny.lora(smollm2, root / "a", seed=1, targets=every, scale=0.05),
        "b": tiny.lora(smollm2, root / "b", seed=2, rank=16, scale=0.2),
        "prefix": tiny.prefix(smollm2, root / "prefix", seed=3, tokens=20),
    }


@pytest.fixture(scope="module")
def judge(models: dict[str, Path]) -> Judge:
    return Judge(
        models["base"], {name: [models[a] for a in each] for name, each in MEMBERS.items()}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=3,
            max_lora_rank=16,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 1 << 29,
                "max_model_len": 512,
                "max_num_seqs": 8,
            },
        )
    )
    await engine.prepare(version(models, "four", MEMBERS))
    yield engine
    await engine.close()


@pytest.mark.parametrize("member", list(MEMBERS))
async def test_each_member_equals_peft(engine: Any, judge: Judge, member: str) -> None:
    for text in TEXTS:
        answer = await ask(engine, greedy(text, TOKENS), "four", member=member)
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(member, text)], averaged([1.0]))
