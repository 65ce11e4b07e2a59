"""A hundred thousand tokens of the base, beside groups of activated LoRAs that share its prompts."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from serve.engine.interface import EngineSettings, GenerateCall
from serve.errors import Refusal
from serve.labels import INVOCATION
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, greedy, version
from tests.serve.engine.fused import Judge, averaged

pytestmark = [pytest.mark.soak, pytest.mark.engine, pytest.mark.timeout(3600)]

TOKENS = 100_000
NEW_TOKENS = 200
READERS, GROUPS = 4, 2
"""Clients of the base, and of the group."""
INVOCATIONS = {"a": "\nIntent:", "b": "\nSay", "c": "\n"}
WORDS = (
    "where",
    "is",
    "my",
    "card",
    "please",
    "cancel",
    "the",
    "payment",
    "that",
    "I",
    "made",
    "yet",
)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    base = tiny.causal_base(tmp_path / "base", context=512)
    tokenizer = AutoTokenizer.from_pretrained(base)
    models = {"base": base}
    for seed, (name, text) in enumerate(INVOCATIONS.items(), start=1):
        ids = tokenizer(text)["input_ids"]
        models[name] = tiny.lora(base, tmp_path / name, seed=seed, invocation=ids)
    return models


@pytest.fixture
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    """The cache is too small for all, so blocks are evicted, requests preempted and prompts read again."""
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            str(models["base"]),
            "causal",
            adapter_slots=len(INVOCATIONS),
            max_lora_rank=8,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 64 * BLOCK_BYTES,
                "max_num_batched_tokens": 64,
                "max_num_seqs": 12,
            },
        )
    )
    marked = {"template": f"{{text}}{INVOCATION}"}
    await engine.prepare(version(models, "group", {each: each for each in INVOCATIONS}, **marked))
    await engine.prepare(version(models, "alone", {"plain": None}))
    yield engine
    await engine.close()


def text(chance: random.Random) -> str:
    """One of forty prompts, so that the base and the group read the same ones."""
    own = random.Random(chance.randrange(40))
    return " ".join(own.choices(WORDS, k=own.randrange(5, 60)))


async def answered(engine: Any, name: str, body: dict[str, Any]) -> Any:
    call = GenerateCall(f"{name}@1", "completions", body, "soak")
    (part,) = [part async for part in engine.generate(call)]
    assert not isinstance(part, Refusal), part
    return json.loads(part)["choices"][0]


async def test_the_base_answers_as_alone(engine: Any, models: dict[str, Path]) -> None:
    judge = Judge(models["base"], {"plain": []})
    known: set[tuple[str, tuple[int, ...]]] = set()
    given = fused = 0
    over = asyncio.Event()

    async def read(seed: int) -> None:
        nonlocal given
        chance = random.Random(seed)
        while given < TOKENS:
            prompt = text(chance)
            choice = await answered(engine, "alone", greedy(prompt, NEW_TOKENS))
            given += len(choice["token_ids"])
            key = (prompt, tuple(choice["token_ids"]))
            if key not in known:  # the reference is asked once for each distinct answer
                known.add(key)
                judge.check(choice, [("plain", prompt)], averaged([1.0]))

    async def ask_group(seed: int) -> None:
        nonlocal fused
        chance = random.Random(seed)
        while not over.is_set():
            await answered(engine, "group", greedy(text(chance) + INVOCATION, 8))
            fused += 1

    groups = [asyncio.create_task(ask_group(seed)) for seed in range(GROUPS)]
    await asyncio.gather(*(read(100 + seed) for seed in range(READERS)))
    over.set()
    await asyncio.gather(*groups)
    print(
        f"{given} tokens of the base in {len(known)} distinct answers, {judge.ties} near ties, "
        f"beside {fused} answers of the group"
    )
    assert fused > 100
