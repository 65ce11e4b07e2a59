"""Calls of a small real engine, and the answers that they should get."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serve.digest import folder_digest
from serve.engine.interface import EngineSettings, GenerateCall, Prediction, Version
from serve.errors import Refusal
from serve.fusion.fused import Fused
from serve.manifest import Ensemble
from tests.serve import tiny
from tests.serve.engine.fused import Judge, Merge, averaged, multiplied

RANKS = {"a": 8, "b": 16, "c": 4, "d": 32}
BLOCK_BYTES = 32768
"""Of the tiny model: 32 tokens, 2 layers, 2 heads of 32 numbers, keys and values, float32."""
BLOCKS = 26
CHUNK = 48

WEIGHTS = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.15, "plain": 0.05}
PRODUCT = {"a": 0.5, "b": 0.6, "c": 0.2, "d": 0.0, "plain": 0.3}
CONTRAST = {"a": 1.0, "b": 0.6, "c": 0.2, "d": 0.2, "plain": -0.7}
GUIDANCE = {"yes": 1.8, "no": -0.8}
UNCONDITIONAL = "please"

Route = Literal["completions", "chat"]


def make_models(root: Path) -> dict[str, Path]:
    """Returns the folders of a base and four adapters of different ranks."""
    base = tiny.causal_base(root / "base", context=256)
    folders = {
        name: tiny.lora(base, root / name, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(RANKS.items(), start=1)
    }
    return {"base": base, **folders}


def make_judge(models: Mapping[str, Path]) -> Judge:
    return Judge(models["base"], {**{name: [models[name]] for name in RANKS}, "plain": []})


def version(
    models: Mapping[str, Path],
    name: str,
    members: Mapping[str, str | Sequence[str] | None],
    **fields: Any,
) -> Version:
    """Returns a version. `members`: name -> its adapter, its adapters, or None for the plain base."""
    adapters = {
        member: [given] if isinstance(given, str) else list(given or ())
        for member, given in members.items()
    }
    digests = {
        adapter: folder_digest(models[adapter]) for each in adapters.values() for adapter in each
    }
    manifest = {
        "format": 1,
        "name": name,
        "version": 1,
        "task": "generation",
        "members": [
            {
                "name": member,
                "adapters": [{"adapter": adapter, "digest": digests[adapter]} for adapter in each],
            }
            for member, each in adapters.items()
        ],
        "fusion": {"method": "average"},
        **fields,
    }
    return Version(
        Ensemble.model_validate(manifest),
        {digest: str(models[adapter]) for adapter, digest in digests.items()},
    )


async def start(models: Mapping[str, Path]) -> Any:
    """Returns a small engine with the three ensembles."""
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=5,
            max_lora_rank=32,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES,
                "max_num_batched_tokens": CHUNK,
                "max_num_seqs": 8,
            },
        )
    )
    every = {name: name for name in RANKS}
    await engine.prepare(version(models, "five", {**every, "plain": None}))
    await engine.prepare(version(models, "guided", {"yes": "a", "no": "a"}))
    await engine.prepare(version(models, "one", {"a": "a"}))
    return engine


async def stream(engine: Any, body: dict[str, Any], model: str = "five", **fields: Any) -> Any:
    """Returns the events of a stream, or the refusal."""
    route: Route = "chat" if "messages" in body else "completions"
    call = GenerateCall(f"{model}@1", route, {**body, "stream": True}, "test", **fields)
    parts = [part async for part in engine.generate(call)]
    if isinstance(parts[0], Refusal):
        return parts[0]
    lines = b"".join(parts).decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


async def ask(engine: Any, body: dict[str, Any], model: str = "five", **fields: Any) -> Any:
    route: Route = "chat" if "messages" in body else "completions"
    call = GenerateCall(f"{model}@1", route, body, "test", **fields)
    (part,) = [part async for part in engine.generate(call)]
    return part if isinstance(part, Refusal) else json.loads(part)


def member_probabilities(answer: Prediction) -> np.ndarray:
    """[M, N, C] of a classification that was asked for its members."""
    assert answer.member_answers is not None
    each = [one.probabilities for one in answer.member_answers if isinstance(one, Fused)]
    return np.stack(each)


def greedy(prompt: str, tokens: int = 12, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 3,
        "return_tokens_as_token_ids": True,
        **fields,
    }


def prompts(count: int, seed: int) -> list[str]:
    """Returns prompts of one token to two chunks; some of them are beginnings of others."""
    rng = random.Random(seed)
    words = " ".join(tiny.CORPUS[:7]).split()
    found = ["A", "where is my card and why has it not arrived yet"]
    while len(found) < count:
        length = rng.choice([1, 3, 8, 20, 60])
        found.append(" ".join(rng.choices(words, k=length)))
    return found[:count]


CASES: list[tuple[str, str, dict[str, Any], Merge]] = [
    ("average", "five", {}, averaged([0.2] * 5)),
    (
        "weighted_average",
        "five",
        {"method": "weighted_average", "weights": WEIGHTS},
        averaged(list(WEIGHTS.values())),
    ),
    (
        "product",
        "five",
        {"method": "product", "weights": PRODUCT},
        multiplied(list(PRODUCT.values())),
    ),
    (
        "contrastive",
        "five",
        {"method": "product", "weights": CONTRAST},
        multiplied(list(CONTRAST.values())),
    ),
    (
        "guidance",
        "guided",
        {"method": "product", "weights": GUIDANCE, "prompts": {"no": UNCONDITIONAL}},
        multiplied(list(GUIDANCE.values())),
    ),
]


async def compare(engine: Any, judge: Judge, texts: list[str], seed: int) -> None:
    """Compares all cases on all texts at once, among single requests."""
    rng = random.Random(seed)
    work: list[Any] = []
    for number, text in enumerate(texts):
        for name, model, fusion, merge in CASES:
            members = [(each, text) for each in (*RANKS, "plain")]
            if model == "guided":
                members = [("a", text), ("a", UNCONDITIONAL)]
            work.append((greedy(text, rng.choice([1, 8, 24])), model, fusion, merge, members, name))
        alone = rng.choice([*RANKS, "plain"])
        fields = {"member": alone}
        single = greedy(text, 20)
        work.append((single, "five", fields, averaged([1.0]), [(alone, text)], number))
    rng.shuffle(work)

    async def one(body: Any, model: str, fields: Any, merge: Merge, members: Any, _: Any) -> Any:
        answer = await ask(engine, body, model, return_members=True, **fields)
        assert not isinstance(answer, Refusal), answer
        return answer, merge, members

    limit = asyncio.Semaphore(16)

    async def limited(*job: Any) -> Any:
        async with limit:
            return await one(*job)

    for answer, merge, members in await asyncio.gather(*(limited(*job) for job in work)):
        judge.check(answer["choices"][0], members, merge)
    print(f"{judge.answers} answers, {judge.tokens} tokens, {judge.ties} near ties")
