"""The engine by itself: what long labels cost, and what the server adds to vLLM's own time."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.bundle import Bundle
from serve.engine.interface import EngineSettings, PredictCall, Text, Version
from serve.labels import fill, label_texts
from tests.bench.conftest import ENGINE, VLLM_ALONE, banking77, three_loras, variants
from tests.bench.measuring import median_ms, report

pytestmark = [pytest.mark.bench, pytest.mark.asyncio(loop_scope="module")]

CLIENTS = 8
REQUESTS = 400
PROMPT_TOKENS = 300
LABELS = 77
LONG_LABELS_COST = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(demo_bundle: Path) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    bundle = Bundle.open(demo_bundle)
    engine = await VLLMEngine.start(
        EngineSettings(bundle.base_source, "causal", adapter_slots=13, dtype="float32")
    )
    ensemble = three_loras(bundle)
    folders = {
        reference.digest: str(bundle.adapter_dir(reference))
        for member in ensemble.members
        for reference in member.adapters
    }
    await engine.prepare(Version(ensemble, folders, None, True))
    yield engine
    await engine.close()


async def per_second(call: Any) -> float:
    """Return calls per second while a fixed number of them is under way."""
    gate = asyncio.Semaphore(CLIENTS)

    async def one(turn: int) -> None:
        async with gate:
            await call(turn)

    await asyncio.gather(*(one(turn) for turn in range(50)))
    started = time.perf_counter()
    await asyncio.gather(*(one(turn) for turn in range(1000, 1000 + REQUESTS)))
    return REQUESTS / (time.perf_counter() - started)


async def test_the_engine_against_vllm_alone(
    engine: Any, messages: list[str], demo_bundle: Path, rates: dict[str, float]
) -> None:
    """The same members are asked twice: by tokenised requests to vLLM itself, and through the engine's `predict`."""
    ensemble = three_loras(Bundle.open(demo_bundle))
    texts = label_texts(ensemble.labels or (), ensemble.verbalizers)
    scorer = engine._causal
    adapters = [engine._member_adapters(member) for member in ensemble.members]

    def text(turn: int) -> str:
        return f"{turn} {messages[turn % len(messages)]}"

    plans = {
        turn: scorer._plan([fill(ensemble.template, text(turn))], texts, scorer._context)[0]
        for turn in (*range(50), *range(1000, 1000 + REQUESTS))
    }

    async def vllm_alone(turn: int) -> None:
        questions = plans[turn].questions
        await asyncio.gather(*(scorer._ask(each, one) for one in adapters for each in questions))

    async def predict(turn: int) -> None:
        # Other numbers, so that neither side reads the other's prompts from the cache.
        await engine.predict(PredictCall(ensemble.id, (Text(text(turn + 5000)),), "bench"))

    alone = await per_second(vllm_alone)
    whole = await per_second(predict)
    rates |= {VLLM_ALONE: alone, ENGINE: whole}
    report(
        f"Predictions per second by three members, {CLIENTS} at once",
        f"vLLM directly, prompts tokenised before  {alone:7.1f}",
        f"the engine's predict (tokenise, score, fuse) {whole:7.1f}   ratio {whole / alone:.2f}",
    )


async def test_long_labels_against_single_tokens(engine: Any) -> None:
    """77 labels of several tokens cost at most 8 times 77 labels of one."""
    tokenizer = engine._llm.get_tokenizer()
    rows = banking77("test.csv")
    long = [f" {label}" for label in sorted({row["category"] for row in rows})]
    words = [tokenizer.decode([token]) for token in range(260, len(tokenizer))]
    single = [
        word
        for word in words
        if word.startswith(" ")
        and len(tokenizer("x:" + word)["input_ids"]) == len(tokenizer("x:")["input_ids"]) + 1
    ][:LABELS]
    assert len(single) == len(long) == LABELS
    ids = tokenizer(" ".join(row["text"] for row in rows[:400]))["input_ids"]
    adapter = engine._member_adapters(engine._versions["three@1"].ensemble.members[0])

    async def seconds(labels: list[str], offset: int) -> list[float]:
        values = []
        for turn in range(13):
            start = offset + 11 * turn
            prompt = tokenizer.decode(ids[start : start + PROMPT_TOKENS - 1]) + ":"
            began = time.perf_counter()
            await engine._causal.score([prompt], labels, [adapter])
            values.append(time.perf_counter() - began)
        return values[3:]

    one, several = median_ms(await seconds(single, 0)), median_ms(await seconds(long, 500))
    tokens = sum(len(tokenizer(label)["input_ids"]) for label in long) / LABELS
    report(
        f"{LABELS} labels after a prompt of about {PROMPT_TOKENS} tokens, one member",
        f"one token each            {one:7.1f} ms at the median",
        f"{tokens:4.1f} tokens on average    {several:7.1f} ms at the median",
        f"ratio                     {several / one:7.2f}   (at most {LONG_LABELS_COST})",
    )
    assert several <= LONG_LABELS_COST * one


async def test_loading_an_adapter(
    engine: Any, demo_bundle: Path, tmp_path: Path, load_seconds: list[float]
) -> None:
    """vLLM's own part of a swap, which test_serving.py compares a whole one with."""
    from vllm.lora.request import LoRARequest

    bundle = Bundle.open(demo_bundle)
    lora = bundle.adapter_dir(three_loras(bundle).members[0].adapters[0])
    for number, folder in enumerate(variants(lora, tmp_path, 10), 10_000):
        request = LoRARequest(folder.name, number, str(folder))
        started = time.perf_counter()
        await engine._llm.add_lora(request)
        load_seconds.append(time.perf_counter() - started)
        await engine._llm.remove_lora(number)
    report(
        "Loading a LoRA into the engine",
        f"vLLM's add_lora  {median_ms(load_seconds):7.1f} ms at the median",
    )
