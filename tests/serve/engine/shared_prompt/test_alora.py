"""Activated LoRAs in one small real engine, beside LoRA, a prefix and the base, against PEFT."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from serve import metrics
from serve.engine.interface import EngineSettings, PredictCall, Prediction, PrepareError, Text
from serve.errors import Refusal
from tests.serve import tiny
from tests.serve.engine.calls import (
    BLOCK_BYTES,
    ask,
    greedy,
    member_probabilities,
    prompts,
    version,
)
from tests.serve.engine.fused import Judge, averaged
from tests.serve.engine.soft_calls import preemptions

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

MARK = "{invocation}"
INVOCATIONS = {"a": "\nIntent:", "b": "\nIs it about a card? Say", "c": "\n"}
EVERY = ("a", "b", "c", "lora", "prefix", "plain")
LABELS = ["card lost", "card", "top up", "A"]
BLOCKS = 30
CHUNK = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("alora")
    base = tiny.causal_base(root / "base", context=512)
    tokenizer = tiny.AutoTokenizer.from_pretrained(base)
    made = {"base": base}
    for seed, (name, text) in enumerate(INVOCATIONS.items(), start=1):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made[name] = tiny.lora(base, root / name, seed=seed, rank=8 * seed, invocation=ids)
    made["lora"] = tiny.lora(base, root / "lora", seed=5)
    made["prefix"] = tiny.prefix(base, root / "prefix", seed=6, tokens=16)
    return made


class AloraJudge(Judge):
    """A text ends in the mark; each member reads it with its own invocation, tokenised by itself, or with nothing."""

    def ids(self, model: str, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        head = self.tokenizer(prompt.removesuffix(MARK))["input_ids"]
        own = INVOCATIONS.get(model, "")
        return head + (self.tokenizer(own)["input_ids"] if own and prompt.endswith(MARK) else [])

    def start(self, model: str, ids: list[int]) -> int | None:
        """The last place in the prompt where a member's invocation begins."""
        if model not in INVOCATIONS:
            return None
        own = self.tokenizer(INVOCATIONS[model])["input_ids"]
        return max(n for n in range(len(ids)) if ids[n : n + len(own)] == own)

    @torch.no_grad()
    def logs(self, model: str, prompt: str, tokens: Sequence[int]) -> np.ndarray:
        ids = self.ids(model, prompt)
        logits = self.models[model].logits([*ids, *tokens[:-1]], self.start(model, ids))
        logits = logits[len(ids) - 1 :]
        return np.asarray(logits.double().log_softmax(-1))


@pytest.fixture(scope="module")
def judge(models: dict[str, Path]) -> AloraJudge:
    return AloraJudge(
        models["base"], {name: [models[name]] if name in models else [] for name in EVERY}
    )


def worn(*names: str) -> dict[str, str | None]:
    return {name: None if name == "plain" else name for name in names}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: Mapping[str, Path]) -> AsyncIterator[Any]:
    """Prompts come in chunks of 32, a step has 64 tokens, and the cache is mostly full."""
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=4,
            max_lora_rank=32,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES,
                "max_num_batched_tokens": CHUNK,
                "long_prefill_token_threshold": 32,
                "max_num_seqs": 12,
            },
        )
    )
    marked = {"template": f"{{text}}{MARK}"}
    await engine.prepare(version(models, "every", worn(*EVERY), **marked))
    await engine.prepare(version(models, "three", worn("a", "b", "plain"), **marked))
    await engine.prepare(version(models, "mixed", worn("a", "lora", "c"), **marked))
    labelled = {
        "task": "classification",
        "labels": LABELS,
        "template": f"Message: {{text}}{MARK}",
    }
    await engine.prepare(version(models, "labels", worn("a", "b", "plain", "lora"), **labelled))
    yield engine
    await engine.close()


def contexts(count: int, seed: int, judge: AloraJudge) -> list[str | list[int]]:
    """Texts with the mark, and prompts of token ids where the invocations stand early, twice, or over a block's end."""
    made: list[str | list[int]] = [f"{text}{MARK}" for text in prompts(count, seed)]
    text = judge.tokenizer("where is my card and why has it not arrived yet " * 6)["input_ids"]
    rng = random.Random(seed)
    own = [judge.tokenizer(each)["input_ids"] for each in INVOCATIONS.values()]
    for before, behind in ((0, 40), (31, 9), (32, 4), (20, 80)):
        rng.shuffle(own)
        ids = text[:before] + [token for each in own for token in each] + text[:behind]
        made.append(ids)
    every = [token for each in own for token in each]
    made.append(text[:40] + every + text[:33] + every + text[:3])
    return made


async def sweep(engine: Any, judge: AloraJudge, texts: Sequence[Any], seed: int) -> None:
    rng = random.Random(seed)
    work = [(name, text, rng.choice([1, 8, 20])) for name in EVERY for text in texts]
    rng.shuffle(work)
    answers = await asyncio.gather(
        *(ask(engine, greedy(text, tokens), "every", member=name) for name, text, tokens in work)
    )
    for (name, text, _), answer in zip(work, answers, strict=True):
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))
    print(f"{judge.answers} answers, {judge.tokens} tokens, {judge.ties} near ties")


async def test_every_kind_equals_peft_cold_and_warm(engine: Any, judge: AloraJudge) -> None:
    texts = contexts(6, 1, judge)
    before = preemptions()
    await sweep(engine, judge, texts, seed=2)
    await sweep(engine, judge, texts, seed=3)
    await engine._llm.do_log_stats()
    assert preemptions() > before


async def test_fused_text_equals_peft_merged_token_by_token(engine: Any, judge: AloraJudge) -> None:
    texts = contexts(6, 4, judge)
    groups = [("three", ("a", "b", "plain")), ("mixed", ("a", "lora", "c"))]
    work = [(text, *group) for text in texts for group in groups]
    answers = await asyncio.gather(
        *(ask(engine, greedy(text, 12), name, return_members=True) for text, name, _ in work)
    )
    for (text, _, members), answer in zip(work, answers, strict=True):
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(m, text) for m in members], averaged([1 / 3] * 3))
    own = {"b": f"top up my card{MARK}", "plain": "top up"}
    body = greedy(f"where is my card{MARK}", 6)
    answer = await ask(engine, body, "three", prompts=own, return_members=True)
    read = [("a", f"where is my card{MARK}"), *own.items()]
    judge.check(answer["choices"][0], read, averaged([1 / 3] * 3))


async def test_label_scores_equal_peft(engine: Any, judge: AloraJudge) -> None:
    texts = ["where is my card", "please cancel the payment that I made this morning " * 4, "A"]
    call = PredictCall("labels@1", tuple(map(Text, texts)), "test", return_members=True)
    for _ in range(2):  # cold, then warm
        answer = await engine.predict(call)
        assert isinstance(answer, Prediction), answer
        given = member_probabilities(answer)
        for place, name in enumerate(("a", "b", "plain", "lora")):
            for row, text in enumerate(texts):
                ids = judge.ids(name, f"Message: {text}{MARK}")
                scores = []
                for label in LABELS:
                    tokens = judge.tokenizer(f" {label}")["input_ids"]
                    start = judge.start(name, ids)
                    logits = judge.models[name].logits([*ids, *tokens], start)
                    logs = logits[len(ids) - 1 : -1].double().log_softmax(-1)
                    scores.append(sum(float(logs[n, token]) for n, token in enumerate(tokens)))
                expected = torch.tensor(scores, dtype=torch.float64).softmax(0).numpy()
                np.testing.assert_allclose(given[place, row], expected, atol=1e-3)


async def test_members_compute_a_shared_prompt_once(engine: Any, judge: AloraJudge) -> None:
    """In chunks, which vLLM alone would compute once for each member; and room for it is counted once."""
    text = "my transfer is still pending, please tell me when the money will be there " * 24
    head = len(judge.tokenizer(text)["input_ids"])
    assert 3 * head > BLOCKS * 32 > head, "as prompts of their own they would not fit"
    shared = metrics.REGISTRY.get_sample_value(
        "choir_shared_prompt_tokens_total", {"ensemble": "three"}
    )
    await engine._llm.reset_prefix_cache()
    answer = await ask(engine, greedy(f"{text}{MARK}", 4), "three")
    assert not isinstance(answer, Refusal), answer
    usage = answer["usage"]
    tails = sum(len(judge.tokenizer(INVOCATIONS[name])["input_ids"]) for name in ("a", "b"))
    assert usage["member_tokens"] == 3 * head + tails + 3 * 4
    assert head < usage["computed_tokens"] <= head + 2 * 32 + tails + 3 * 3
    found = metrics.REGISTRY.get_sample_value(
        "choir_shared_prompt_tokens_total", {"ensemble": "three"}
    )
    read = 3 * head + tails + 3 * 3
    assert found - (shared or 0) == read - usage["computed_tokens"]
    judge.check(
        answer["choices"][0],
        [(name, f"{text}{MARK}") for name in ("a", "b", "plain")],
        averaged([1 / 3] * 3),
    )


async def test_a_chat_without_a_limit_gets_the_room_that_sharing_leaves(engine: Any) -> None:
    """The chat template's generation prompt is no invocation here, so the message brings it."""
    content = "please tell me when the money will be there " * 16 + INVOCATIONS["a"]
    body = {
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": False,
    }
    answer = await ask(engine, body, "every", member="a")
    assert not isinstance(answer, Refusal), answer
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_prompt_without_the_invocation_is_refused(engine: Any) -> None:
    for prompt in ("where is my card", [5, 6, 7]):
        refusal = await ask(engine, greedy(prompt), "three")
        assert isinstance(refusal, Refusal)
        assert refusal.status == 400
        assert "lacks the text" in refusal.message
    plain = await ask(engine, greedy("where is my card"), "three", member="plain")
    assert not isinstance(plain, Refusal)


async def test_a_template_that_cannot_hold_it_is_refused(
    engine: Any, models: Mapping[str, Path]
) -> None:
    for template, reason in (
        ("{text}", "must end in"),
        ("{invocation}{text}", "in its middle"),
        (f"{{text}}{INVOCATIONS['b']}", "must end in"),
    ):
        with pytest.raises(PrepareError, match=reason):
            await engine.prepare(version(models, "wrong", worn("a"), template=template))
    assert "wrong@1" not in engine.state().versions


async def test_the_probe_compares_with_the_base_behind_the_same_invocation(
    engine: Any, models: Mapping[str, Path]
) -> None:
    probes = await engine.prepare(version(models, "every", worn(*EVERY)))
    assert all(probe.change > 1e-3 for probe in probes)
