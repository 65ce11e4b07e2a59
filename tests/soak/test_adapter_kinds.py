"""Five hundred swaps among all kinds of adapters in one engine, under load: every answer is its version's own."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.engine.interface import VERSION_NOT_LOADED, EngineSettings, GenerateCall, Refusal
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, greedy, version
from tests.serve.engine.fused import Judge, averaged

pytestmark = [pytest.mark.soak, pytest.mark.engine, pytest.mark.timeout(3600)]

SWAPS = 500
ENSEMBLES = ("x", "y", "z")
USERS = 8
TEXTS = ("where is my card", "A", "please cancel the payment that I made this morning " * 3)
NEW_TOKENS = 6
MEMORY_GROWTH = 1.05
"""From the first fifth to the end: what allocators keep. The adapters alone would be as much again with every swap."""


def make_models(root: Path) -> dict[str, Path]:
    base = tiny.causal_base(root / "base", context=256)
    models = {"base": base}
    for seed in range(4):
        models[f"lora{seed}"] = tiny.lora(base, root / f"lora{seed}", seed=seed + 1)
        models[f"prefix{seed}"] = tiny.prefix(
            base, root / f"prefix{seed}", seed=seed + 10, tokens=(5, 16, 32, 40)[seed]
        )
        models[f"prompt{seed}"] = tiny.prompt(
            base, root / f"prompt{seed}", seed=seed + 20, tokens=(1, 9, 32, 40)[seed]
        )
    return models


def outfits(models: dict[str, Path]) -> dict[str, list[str]]:
    """Every adapter alone, pairs of a LoRA and another, and the base."""
    alone = {name: [name] for name in models if name != "base"}
    pairs = {
        f"lora{n}+{kind}{n}": [f"lora{n}", f"{kind}{n}"]
        for n in (0, 1)
        for kind in ("prefix", "prompt")
    }
    return {**alone, **pairs, "plain": []}


class Answers:
    """The reference's verdicts: each distinct question is judged once."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.known: set[tuple[tuple[str, ...], str, tuple[int, ...]]] = set()
        self.given = 0

    def check(self, choice: Any, members: tuple[str, ...], text: str) -> None:
        self.given += 1
        key = (members, text, tuple(choice["token_ids"]))
        if key not in self.known:
            merge = averaged([1 / len(members)] * len(members))
            self.judge.check(choice, [(each, text) for each in members], merge)
            self.known.add(key)


async def test_five_hundred_swaps_of_all_kinds(tmp_path: Path) -> None:
    from serve.engine.vllm_engine import VLLMEngine

    models = make_models(tmp_path)
    wardrobe = outfits(models)
    judge = Judge(
        models["base"], {name: [models[each] for each in worn] for name, worn in wardrobe.items()}
    )
    answers = Answers(judge)
    engine = await VLLMEngine.start(
        EngineSettings(
            str(models["base"]),
            "causal",
            adapter_slots=4,
            max_lora_rank=8,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 48 * BLOCK_BYTES,
                "max_num_batched_tokens": 64,
                "max_num_seqs": 12,
            },
        )
    )
    rng = random.Random(11)
    active: dict[str, tuple[str, tuple[str, ...]]] = {}
    over = asyncio.Event()
    late = 0

    async def load(number: int) -> None:
        nonlocal late
        chance = random.Random(number)
        while not over.is_set():
            key, members = active[chance.choice(ENSEMBLES)]
            text = chance.choice(TEXTS)
            one = chance.choice(members) if chance.random() < 0.5 else None
            call = GenerateCall(
                key,
                "completions",
                greedy(text, NEW_TOKENS),
                "soak",
                member=one and one.replace("+", "-"),
            )
            (part,) = [part async for part in engine.generate(call)]
            if isinstance(part, Refusal):
                # as the gateway does, which resolves the name once more
                assert part.code == VERSION_NOT_LOADED, part
                late += 1
                continue
            document = json.loads(part)
            assert document["model"].startswith(key)
            answers.check(document["choices"][0], (one,) if one else members, text)

    async def swap(name: str, number: int) -> None:
        free = 4 - len(
            {
                each
                for _, worn in active.values()
                for m in worn
                for each in wardrobe[m]
                if "lora" in each
            }
        )
        while True:
            members = tuple(rng.sample(list(wardrobe), rng.choice((1, 1, 2, 3))))
            loras = {each for m in members for each in wardrobe[m] if "lora" in each}
            if len(loras) <= max(free, 1):
                break
        new = version(
            models, name, {m.replace("+", "-"): wardrobe[m] for m in members}, version=number
        )
        await engine.prepare(new)
        old = active.get(name)
        active[name] = (f"{name}@{number}", members)
        if old is not None:
            await engine.release(old[0])

    def memory() -> dict[str, float]:
        processes = psutil.Process().children(recursive=True)
        return {p.name(): p.memory_info().rss / 2**20 for p in processes if "VLLM" in p.name()}

    for name in ENSEMBLES:
        await swap(name, 1)
    users = [asyncio.create_task(load(number)) for number in range(USERS)]
    before: dict[str, float] = {}
    try:
        for number in range(SWAPS):
            await swap(ENSEMBLES[number % 3], number + 2)
            await asyncio.sleep(0)
            if number == SWAPS // 5:
                before = memory()
            for user in users:
                assert not user.done(), user.exception()
    finally:
        over.set()
        outcomes = await asyncio.gather(*users, return_exceptions=True)
    assert not [each for each in outcomes if each is not None]
    after = memory()
    print(
        f"{SWAPS} swaps, {answers.given} answers of {len(answers.known)} kinds, {late} asked again, "
        f"{judge.ties} near ties; MiB before {before}, after {after}"
    )
    assert answers.given > 2 * SWAPS
    assert before.keys() == after.keys()
    for process, mebibytes in after.items():
        assert mebibytes <= before[process] * MEMORY_GROWTH, process
    for key, _ in active.values():
        await engine.release(key)
    assert engine.state().adapters == ()
    assert await engine._llm.collective_rpc("unload_soft", args=("nothing",)) == [0]
    await engine.close()
