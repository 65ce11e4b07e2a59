"""Five hundred swaps among all kinds of adapters in one engine, under load: every answer is its version's own."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoTokenizer

from serve.engine.interface import VERSION_NOT_LOADED, EngineSettings, GenerateCall
from serve.errors import Refusal
from serve.labels import INVOCATION
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, greedy, version
from tests.serve.engine.fused import Judge, averaged

pytestmark = [pytest.mark.soak, pytest.mark.engine, pytest.mark.timeout(3600)]

SWAPS = 500
ENSEMBLES = ("x", "y", "z")
USERS = 4
SLOTS = 3
"""Fewer than there are LoRAs."""
INVOCATIONS = ("\nIntent:", "\nSay", "\n")
TEXTS = ("where is my card", "A", "please cancel the payment that I made this morning " * 3)
NEW_TOKENS = 4
MEMORY_GROWTH = 1.05
"""What allocators may keep from the first fifth to the end. Adapters that leak would take as much with every swap."""


def make_models(root: Path) -> dict[str, Path]:
    base = tiny.causal_base(root / "base", context=256)
    models = {"base": base}
    tokenizer = AutoTokenizer.from_pretrained(base)
    for seed, text in enumerate(INVOCATIONS):
        ids = tokenizer(text)["input_ids"]
        models[f"alora{seed}"] = tiny.lora(
            base, root / f"alora{seed}", seed=seed + 30, invocation=ids
        )
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


class MarkedJudge(Judge):
    """Every text ends in the mark; activated LoRAs read their invocation there, the others nothing."""

    @torch.no_grad()
    def logs(self, model: str, prompt: str, tokens: Sequence[int]) -> np.ndarray:
        ids, start = self.tokenizer(prompt)["input_ids"], None
        if model.startswith("alora"):
            start = len(ids)
            ids = ids + self.tokenizer(INVOCATIONS[int(model[-1])])["input_ids"]
        logits = self.models[model].logits([*ids, *tokens[:-1]], start)[len(ids) - 1 :]
        return np.asarray(logits.double().log_softmax(-1))


class Answers:
    """Judges answers by the reference, each distinct question once."""

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


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return make_models(tmp_path)


@pytest.fixture
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            str(models["base"]),
            "causal",
            adapter_slots=SLOTS,
            max_lora_rank=8,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 48 * BLOCK_BYTES,
                "max_num_batched_tokens": 64,
                "max_num_seqs": 12,
            },
        )
    )
    yield engine
    await engine.close()


async def test_five_hundred_swaps_of_all_kinds(engine: Any, models: dict[str, Path]) -> None:
    wardrobe = outfits(models)
    judge = MarkedJudge(
        models["base"], {name: [models[each] for each in worn] for name, worn in wardrobe.items()}
    )
    answers = Answers(judge)
    rng = random.Random(11)
    active: dict[str, tuple[str, tuple[str, ...]]] = {}
    over = asyncio.Event()
    held: dict[str, set[str]] = {}
    before: dict[str, float] = {}
    swaps = late = 0

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
                greedy(text + INVOCATION, NEW_TOKENS),
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

    def loras(members: tuple[str, ...]) -> set[str]:
        return {each for m in members for each in wardrobe[m] if "lora" in each}

    async def swap(name: str, number: int) -> None:
        """Swap to a version of a few random members that fits into the slots beside what is loaded or will be."""
        old = active.get(name)
        taken = set().union(*held.values())
        while True:
            members = tuple(rng.sample(list(wardrobe), rng.choice((1, 1, 2, 3))))
            if len(taken | loras(members)) <= SLOTS:
                break
        held[name] = held.get(name, set()) | loras(members)
        worn = {m.replace("+", "-"): wardrobe[m] for m in members}
        marked = {"template": f"{{text}}{INVOCATION}"}
        await engine.prepare(version(models, name, worn, version=number, **marked))
        active[name] = (f"{name}@{number}", members)
        if old is not None:
            await engine.release(old[0])
        held[name] = loras(members)

    def memory() -> dict[str, float]:
        processes = psutil.Process().children(recursive=True)
        return {p.name(): p.memory_info().rss / 2**20 for p in processes if "VLLM" in p.name()}

    async def keep_swapping(name: str) -> None:
        nonlocal swaps
        for number in range(2, SWAPS // len(ENSEMBLES) + 3):
            await swap(name, number)
            swaps += 1
            if swaps == SWAPS // 5:
                before.update(memory())
            if swaps % 50 == 0:
                print(f"{swaps} swaps, {answers.given} answers", flush=True)

    for name in ENSEMBLES:
        await swap(name, 1)
    users = [asyncio.create_task(load(number)) for number in range(USERS)]
    swapping = asyncio.gather(*(keep_swapping(name) for name in ENSEMBLES))
    await asyncio.wait([swapping, *users], return_when=asyncio.FIRST_COMPLETED)
    over.set()
    await asyncio.gather(swapping, *users)
    after = memory()
    print(
        f"{swaps} swaps, {answers.given} answers, {len(answers.known)} of them distinct, {late} asked again, "
        f"{judge.ties} near ties; MiB after a fifth {before}, at the end {after}"
    )
    assert answers.given > SWAPS
    assert before.keys() == after.keys()
    for process, mebibytes in after.items():
        assert mebibytes <= before[process] * MEMORY_GROWTH, process
    for key, _ in active.values():
        await engine.release(key)
    assert engine.state().adapters == ()
    assert await engine._llm.collective_rpc("unload_soft", args=("nothing",)) == [0]
