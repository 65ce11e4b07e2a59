"""What eight members over a long prompt cost: activated LoRAs, which share it, against plain ones and against one."""

import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.engine.interface import EngineSettings, GenerateCall, PredictCall, Prediction, Text
from serve.errors import Refusal
from tests.bench.measuring import ratio, report, rotated
from tests.serve import tiny
from tests.serve.engine.calls import version

pytestmark = [
    pytest.mark.bench,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

MEMBERS = 8
PROMPT = 1024
NEW_TOKENS = 4
ROUNDS = 5
ASKS = "\nIntent:"
LABELS = ["yes", "no", "card", "transfer"]
TOKENS = 1.3
"""Tokens that eight members compute, as a multiple of one's."""
SECONDS = 1.6
"""The same of time."""
FASTER = 5
"""How many times as long eight plain LoRAs take."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """A base of 4 layers of 512, with eight activated and eight plain LoRAs on all its linear modules."""
    from serve.engine.vllm_engine import VLLMEngine

    root = tmp_path_factory.mktemp("bench")
    base = tiny.causal_base(root / "base", layers=4, hidden=512, context=2048)
    tokenizer = tiny.AutoTokenizer.from_pretrained(base)
    asks = tokenizer(ASKS)["input_ids"]
    models: dict[str, Path] = {"base": base}
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for number in range(MEMBERS):
        for name, invocation in ((f"a{number}", asks), (f"l{number}", None)):
            models[name] = tiny.lora(
                base,
                root / name,
                seed=number + 1,
                targets=linear,
                scale=0.05,
                invocation=invocation,
            )
    engine = await VLLMEngine.start(
        EngineSettings(
            str(base),
            "causal",
            adapter_slots=2 * MEMBERS,
            max_lora_rank=8,
            dtype="float32",
            arguments={"kv_cache_memory_bytes": 1 << 28},
        )
    )
    labelled = {"task": "classification", "labels": LABELS}
    for name, kind, count in (("aloras", "a", 8), ("loras", "l", 8), ("one", "a", 1)):
        members = {f"{kind}{n}": f"{kind}{n}" for n in range(count)}
        template = {"template": f"{{text}}{ASKS}"}
        await engine.prepare(version(models, name, members, **template))
        await engine.prepare(version(models, f"{name}-labels", members, **template, **labelled))
    yield engine
    await engine.close()


def text_of(tokenizer: Any, seed: int) -> str:
    """A new text of about `PROMPT` tokens, so that nothing comes out of the cache."""
    rng = random.Random(seed)
    words = " ".join(tiny.CORPUS[:6]).split()
    text = f"{seed}"
    while len(tokenizer(text)["input_ids"]) < PROMPT:
        text += " " + " ".join(rng.choices(words, k=20))
    return text


async def write(engine: Any, name: str, text: str) -> int:
    """Returns the tokens that the engine computed for the answer; of one member vLLM says no more than its own."""
    body = {
        "prompt": text + ASKS,
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    (part,) = [
        part
        async for part in engine.generate(GenerateCall(f"{name}@1", "completions", body, "bench"))
    ]
    assert not isinstance(part, Refusal), part
    usage = json.loads(part)["usage"]
    alone = usage["prompt_tokens"] + usage["completion_tokens"] - 1
    return int(usage.get("computed_tokens", alone))


async def predict(engine: Any, name: str, text: str) -> int:
    answer = await engine.predict(PredictCall(f"{name}-labels@1", (Text(text),), "bench"))
    assert isinstance(answer, Prediction), answer
    return answer.computed_tokens


@pytest.mark.parametrize("ask", [write, predict], ids=["text", "labels"])
async def test_eight_members_over_a_long_prompt(engine: Any, ask: Any) -> None:
    tokenizer = engine._llm.get_tokenizer()
    sides = ["aloras", "loras", "one"]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    computed: dict[str, int] = {}
    for turn in range(ROUNDS + 1):
        for place, name in enumerate(rotated(sides, turn)):
            text = text_of(tokenizer, 10 * turn + place)
            started = time.perf_counter()
            computed[name] = await ask(engine, name, text)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    cost = ratio(seconds["aloras"], seconds["one"])
    faster = ratio(seconds["loras"], seconds["aloras"])
    tokens = computed["aloras"] / computed["one"]
    report(
        f"Eight members, {PROMPT} prompt tokens, {NEW_TOKENS} fused tokens or {len(LABELS)} labels as text",
        *(
            f"{name:6} {1000 * statistics.median(found):8.0f} ms, {computed[name]:6} tokens computed"
            for name, found in seconds.items()
        ),
        f"eight activated LoRAs against one: {tokens:.2f} of its tokens (at most {TOKENS}), {cost:.2f} of its time "
        f"(at most {SECONDS}); eight LoRAs take {faster:.1f} times as long (at least {FASTER})",
    )
    assert tokens <= TOKENS
    assert cost <= SECONDS
    assert faster >= FASTER
