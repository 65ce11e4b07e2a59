"""An engine with an adapter of every kind, and calls of it."""

import asyncio
import random
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import prometheus_client

from serve import metrics
from serve.engine.interface import EngineSettings
from serve.errors import Refusal
from serve.manifest import Member
from tests.serve import tiny
from tests.serve.engine.calls import BLOCK_BYTES, ask, greedy, version
from tests.serve.engine.fused import Judge, averaged

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
MIXED = ("lora", "prefix40", "prompt", "lora-prefix", "plain")


def make_models(root: Path) -> dict[str, Path]:
    base = tiny.causal_base(root / "base", context=256)
    return {
        "base": base,
        "lora": tiny.lora(base, root / "lora", seed=1),
        "lora2": tiny.lora(base, root / "lora2", seed=2, rank=4, stabilised=True),
        "prefix5": tiny.prefix(base, root / "prefix5", seed=3, tokens=5),
        "prefix16": tiny.prefix(base, root / "prefix16", seed=4, tokens=16, projection=True),
        "prefix40": tiny.prefix(base, root / "prefix40", seed=5, tokens=40),
        "prompt": tiny.prompt(base, root / "prompt", seed=6, tokens=9),
        "mlp": tiny.p_tuning(base, root / "mlp", seed=7, tokens=40),
        "lstm": tiny.p_tuning(base, root / "lstm", seed=8, tokens=3, encoder="LSTM"),
    }


async def start(models: Mapping[str, Path], **arguments: Any) -> Any:
    """Returns a small engine with three ensembles."""
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
                **arguments,
            },
        )
    )
    await engine.prepare(version(models, "every", MEMBERS))
    await engine.prepare(version(models, "mixed", {name: MEMBERS[name] for name in MIXED}))
    await engine.prepare(version(models, "pair", {"a": ["prefix40"], "b": ["prompt"]}))
    return engine


def make_judge(models: Mapping[str, Path]) -> Judge:
    return Judge(
        models["base"],
        {name: [models[each] for each in adapters] for name, adapters in MEMBERS.items()},
    )


async def sweep(engine: Any, judge: Judge, texts: Sequence[str], seed: int) -> None:
    """Asks every member about every text, all at once."""
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


def stalls(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("choir_group_stalls_total", {"reason": reason}) or 0.0


def member_of(engine: Any, name: str) -> Member:
    members: list[Member] = engine._versions["every@1"].ensemble.members
    return next(member for member in members if member.name == name)


async def finish(engine: Any, prompt: dict[str, Any], member_adapters: Any) -> str:
    """Returns why a request ends that is sent to vLLM directly, past Choir's front ends."""
    from vllm import SamplingParams

    params = member_adapters.params(SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
    stream = engine._llm.generate(
        prompt, params, uuid.uuid4().hex, lora_request=member_adapters.lora
    )
    outputs = [output async for output in stream]
    return str(outputs[-1].outputs[0].finish_reason)


def preemptions() -> float:
    return sum(
        sample.value
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:num_preemptions_total"
    )
