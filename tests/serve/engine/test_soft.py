"""Prefix and prompt adapters in one real engine that is small in every way, beside LoRA and the base, against PEFT."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import pytest_asyncio

from serve.engine.interface import EngineSettings, Refusal
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, ask, greedy, prompts, version
from tests.serve.engine.fused import Judge, averaged

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

BLOCKS = 32
CHUNK = 48
SEQUENCES = 12

MEMBERS: dict[str, Sequence[str]] = {
    "lora": ["lora"],
    "prefix5": ["prefix5"],
    "prefix16": ["prefix16"],
    "prefix40": ["prefix40"],
    "prompt": ["prompt"],
    "mlp": ["mlp"],
    "lstm": ["lstm"],
    "lora-prefix": ["lora", "prefix16"],
    "lora-prompt": ["lora2", "prompt"],
    "plain": [],
}


def make_models(root: Path) -> dict[str, Path]:
    base = tiny.causal_base(root / "base", context=256)
    return {
        "base": base,
        "lora": tiny.lora(base, root / "lora", seed=1),
        "lora2": tiny.lora(base, root / "lora2", seed=2, rank=4),
        "prefix5": tiny.prefix(base, root / "prefix5", seed=3, tokens=5),
        "prefix16": tiny.prefix(base, root / "prefix16", seed=4, tokens=16, projection=True),
        "prefix40": tiny.prefix(base, root / "prefix40", seed=5, tokens=40),
        "prompt": tiny.prompt(base, root / "prompt", seed=6, tokens=9),
        "mlp": tiny.p_tuning(base, root / "mlp", seed=7, tokens=40),
        "lstm": tiny.p_tuning(base, root / "lstm", seed=8, tokens=3, encoder="LSTM"),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("soft"))


@pytest.fixture(scope="module")
def judge(models: dict[str, Path]) -> Judge:
    return Judge(
        models["base"],
        {name: [models[each] for each in adapters] for name, adapters in MEMBERS.items()},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=2,
            max_lora_rank=8,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES,
                "max_num_batched_tokens": CHUNK,
                "max_num_seqs": SEQUENCES,
            },
        )
    )
    await engine.prepare(version(models, "every", MEMBERS))
    yield engine
    await engine.close()


def preemptions() -> float:
    return sum(
        sample.value
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:num_preemptions_total"
    )


async def sweep(engine: Any, judge: Judge, texts: Sequence[str], seed: int) -> None:
    """Every member on every text, all mixed."""
    rng = random.Random(seed)
    work = [(name, text, rng.choice([1, 8, 24])) for name in MEMBERS for text in texts]
    rng.shuffle(work)
    limit = asyncio.Semaphore(2 * SEQUENCES)

    async def one(name: str, text: str, tokens: int) -> Any:
        async with limit:
            return await ask(engine, greedy(text, tokens), "every", member=name)

    answers = await asyncio.gather(*(one(*each) for each in work))
    for (name, text, _), answer in zip(work, answers, strict=True):
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))
    print(f"{judge.answers} answers, {judge.tokens} tokens, {judge.ties} near ties")


async def test_every_kind_equals_peft_in_the_same_batches(engine: Any, judge: Judge) -> None:
    """In chunks, with full caches that evict each other, cold and then warm, and preempted."""
    before = preemptions()
    texts = prompts(6, seed=1)
    await sweep(engine, judge, texts, seed=2)
    await sweep(engine, judge, texts, seed=3)
    assert preemptions() > before
