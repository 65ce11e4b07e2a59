"""Token-level fusion in one small real engine, against PEFT merged token by token."""

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy.stats import chisquare

from serve import metrics
from serve.engine.interface import GenerateCall, PredictCall, PrepareError, Text
from serve.errors import Refusal
from tests.serve.engine.calls import (
    GUIDANCE,
    ask,
    compare,
    greedy,
    prompts,
    stream,
    version,
)
from tests.serve.engine.fused import Judge, averaged, multiplied

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


def stalls(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("choir_group_stalls_total", {"reason": reason}) or 0.0


async def test_fused_texts_equal_peft_merged_token_by_token(engine: Any, judge: Judge) -> None:
    """Prompts come in chunks, slots are full, groups are preempted, caches are warm for one member, and single requests
    run in between."""
    texts = prompts(6, seed=1)
    for text in texts[::2]:
        await ask(engine, greedy(text, 1), member="b")  # warms the cache for b alone
    await compare(engine, judge, texts, seed=2)
    assert stalls("slots") + stalls("kv_cache") > 0


@pytest.mark.slow
async def test_two_hundred_prompts_equal_peft(engine: Any, judge: Judge) -> None:
    judge.answers = judge.tokens = judge.ties = 0
    await compare(engine, judge, prompts(200, seed=5), seed=6)
    assert judge.answers == 1200


async def test_preempted_groups_equal_peft(engine: Any, judge: Judge) -> None:
    """Four groups that fit when they are admitted, and no longer when they have grown."""
    before = stalls("preempted")
    texts = [f"{text}, why" for text in ("where is my card", "top up", "I want", "please tell me")]
    weights = {"method": "weighted_average", "weights": {"yes": 0.7, "no": 0.3}}
    bodies = [greedy(text, 120) for text in texts]
    own = {"prompts": {"no": "cancel"}}
    answers = await asyncio.gather(*(ask(engine, b, "guided", **weights, **own) for b in bodies))
    assert stalls("preempted") > before
    for text, answer in zip(texts, answers, strict=True):
        judge.check(answer["choices"][0], [("a", text), ("a", "cancel")], averaged([0.7, 0.3]))
    print(f"{stalls('preempted') - before:.0f} preemptions, {judge.ties} near ties")


async def test_sampled_text_is_the_same_under_load(engine: Any) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 5}
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2}
    body = greedy("my transfer is still", 30, **sampling, **penalties)
    alone = (await ask(engine, body))["choices"][0]["token_ids"]
    loaded = await asyncio.gather(
        *(ask(engine, body) for _ in range(3)),
        *(ask(engine, greedy(text, 40)) for text in prompts(12, seed=8)),
        *(ask(engine, greedy(text, 40), member="c") for text in prompts(12, seed=9)),
    )
    assert [answer["choices"][0]["token_ids"] for answer in loaded[:3]] == [alone] * 3
    other = (await ask(engine, {**body, "seed": 6}))["choices"][0]["token_ids"]
    assert other != alone


@pytest.mark.slow
async def test_draws_follow_the_fused_distribution(engine: Any, judge: Judge) -> None:
    """20,000 choices of one position, by chi-square against PEFT's distributions fused and cut in numpy."""
    temperature, top_p, draws, at_once = 0.8, 0.9, 20_000, 50
    text, weights = "where is my card", {"yes": 0.7, "no": 0.3}
    fields = {"method": "weighted_average", "weights": weights, "prompts": {"no": "cancel"}}
    sampling = {"temperature": temperature, "top_p": top_p, "n": at_once}
    bodies = [greedy(text, 1, seed=n, **sampling) for n in range(0, draws, at_once)]
    answers = [await ask(engine, body, "guided", **fields) for body in bodies]
    drawn = Counter(choice["token_ids"][0] for each in answers for choice in each["choices"])

    members = np.stack([judge.logs("a", prompt, [0])[0] for prompt in (text, "cancel")])
    tempered = averaged(list(weights.values()))(members) / temperature
    probabilities = np.exp(tempered - np.logaddexp.reduce(tempered))
    order = np.argsort(-probabilities)
    kept = order[: np.searchsorted(probabilities[order].cumsum(), top_p) + 1]
    expected = draws * probabilities[kept] / probabilities[kept].sum()
    assert set(drawn) <= set(kept.tolist())
    result = chisquare([drawn[token] for token in kept.tolist()], expected)
    print(f"{len(kept)} tokens, chi-square {result.statistic:.1f}, p = {result.pvalue:.3f}")
    assert result.pvalue > 0.001


async def test_an_ensemble_of_one_is_that_member(engine: Any) -> None:
    body = greedy("how do I change my address", 20)
    fused = (await ask(engine, body, "one"))["choices"][0]
    alone = (await ask(engine, body, member="a"))["choices"][0]
    assert fused["token_ids"] == alone["token_ids"]
    assert fused["logprobs"] == alone["logprobs"]


async def test_choices_have_seeds_of_their_own(engine: Any) -> None:
    body = greedy("the machine kept", 10, temperature=1.0, seed=3, n=3)
    answer = await ask(engine, body, return_members=True)
    texts = [tuple(choice["token_ids"]) for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    for choice in answer["choices"]:
        assert [len(m["token_logprobs"]) for m in choice["members"]] == [10] * 5
    second = await ask(engine, {**body, "seed": 4, "n": 1})
    assert tuple(second["choices"][0]["token_ids"]) == texts[1]
    usage = answer["usage"]
    assert usage["completion_tokens"] == 30
    assert usage["member_tokens"] == 5 * (usage["prompt_tokens"] + 30)
    events = await stream(engine, body)
    streamed = {
        index: tuple(
            token
            for event in events
            for choice in event["choices"]
            if choice["index"] == index
            for token in choice["token_ids"]
        )
        for index in range(3)
    }
    assert list(streamed.values()) == texts


async def test_streams_token_by_token_with_the_members(engine: Any) -> None:
    body = greedy("please cancel the payment", 12)
    whole = await ask(engine, body, return_members=True)
    told = {**body, "stream_options": {"include_usage": True}}
    events = await stream(engine, told, return_members=True)
    pieces = [event["choices"][0] for event in events if event["choices"]]
    assert len(pieces) > 6, "it streams"
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    for place, member in enumerate(whole["choices"][0]["members"]):
        streamed = [x for piece in pieces for x in piece["members"][place]["token_logprobs"]]
        np.testing.assert_allclose(streamed, member["token_logprobs"], atol=1e-4)
    nats = [x for piece in pieces for x in piece["disagreement"]]
    np.testing.assert_allclose(nats, whole["choices"][0]["disagreement"], atol=1e-4)
    assert all(len(p["disagreement"]) == len(p["token_ids"]) for p in pieces)
    assert events[-1]["usage"]["member_tokens"] == whole["usage"]["member_tokens"]


async def test_chat_with_prompts_of_the_members_own(engine: Any, judge: Judge) -> None:
    body = {
        "messages": [{"role": "user", "content": "where is my card"}],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": True,
        "top_logprobs": 2,
    }
    weights = {"method": "product", "weights": GUIDANCE, "prompts": {"no": "please"}}
    answer = await ask(engine, body, "guided", **weights)
    choice = answer["choices"][0]
    given = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    judge.check(
        {
            "token_ids": choice["token_ids"],
            "logprobs": {"token_logprobs": given, "top_logprobs": []},
        },
        [("a", f"user: {text}\nassistant:") for text in ("where is my card", "please")],
        multiplied(list(GUIDANCE.values())),
    )
    events = await stream(engine, body, "guided", **weights)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == choice["message"]["content"]


async def test_stops_bias_bad_words_and_structure_hold_for_fused_text(engine: Any) -> None:
    free = (await ask(engine, greedy("I want to top up", 24)))["choices"][0]
    middle = free["text"][len(free["text"]) // 2 :][:2]
    stopped = (await ask(engine, greedy("I want to top up", 24, stop=[middle])))["choices"][0]
    assert stopped["text"] == free["text"].split(middle)[0]
    assert stopped["finish_reason"] == "stop"
    first = free["token_ids"][0]
    biased = greedy("I want to top up", 4, logit_bias={str(first): -100})
    assert (await ask(engine, biased))["choices"][0]["token_ids"][0] != first
    token = free["token_ids"][3]
    ended = greedy("I want to top up", 24, stop_token_ids=[token], min_tokens=8)
    assert len((await ask(engine, ended))["choices"][0]["token_ids"]) >= 8
    chosen = greedy("I want to top up", 8, structured_outputs={"choice": ["yes", "no"]})
    chosen["ignore_eos"] = False
    assert (await ask(engine, chosen))["choices"][0]["text"] in ("yes", "no")


@pytest.mark.parametrize(
    ("change", "fields", "param"),
    [
        ({"use_beam_search": True}, {}, "use_beam_search"),
        ({"prompt_logprobs": 1}, {"method": "vote"}, "prompt_logprobs"),
        ({"echo": True}, {"method": "vote"}, "logprobs"),
        ({"prompt_logprobs": 50}, {}, "prompt_logprobs"),
        ({"best_of": 2}, {}, "best_of"),
        ({"logprobs": 50}, {}, "logprobs"),
        ({"max_tokens": 250}, {}, "max_tokens"),
        ({"vllm_xargs": {"choir_sibling": "x"}}, {}, "vllm_xargs"),
        ({}, {"method": "stack"}, "fusion.method"),
        ({}, {"weights": {"a": 1}}, "fusion.weights"),
        ({}, {"plausibility": 0.1}, "fusion.plausibility"),
        ({}, {"prompts": {"x": "y"}}, "fusion.prompts"),
        ({"prompt": ["a", "b"]}, {"prompts": {"a": "y"}}, "fusion.prompts"),
        ({"n": 3}, {"method": "vote"}, "n"),
        ({"n": 3}, {"method": "mbr"}, "n"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_parameters_that_a_group_cannot_honour_are_refused(
    engine: Any, change: Any, fields: Any, param: str, streaming: bool
) -> None:
    body = {**greedy("where is my card and why"), **change}
    refusal = await (stream if streaming else ask)(engine, body, **fields)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.status == 400
    assert refusal.param == param or param in refusal.message
    assert refusal.message.endswith(".")


async def test_a_group_that_can_never_fit_is_refused(engine: Any) -> None:
    body = greedy("card " * 150, 80)
    before = stalls("infeasible")
    for asking in (ask, stream):
        refusal = await asking(engine, body)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, "KV cache" in refusal.message) == (400, True), refusal
    assert stalls("infeasible") == before + 2


@pytest.mark.parametrize("method", ["vote", "mbr"])
async def test_one_of_the_whole_answers_is_given_when_asked_for(engine: Any, method: str) -> None:
    body = {"prompt": "A", "max_tokens": 4}
    answer = await ask(engine, body, method=method, return_members=True)
    choice = answer["choices"][0]
    assert 0 <= choice["agreement"] <= 1
    assert choice["text"] in [member["text"] for member in choice["members"]]


async def test_an_ensemble_degrades_when_a_member_fails_to_load(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{}")
    members = {"a": "a", "x": "x", "b": "b"}
    folders = {**models, "x": broken}
    with pytest.raises(PrepareError, match="'x'"):
        await engine.prepare(version(folders, "strict", members))
    await engine.prepare(version(folders, "lenient", members, on_member_error="degrade"))
    name = {"ensemble": "lenient", "version": "1"}
    assert metrics.REGISTRY.get_sample_value("choir_members_absent", name) == 1
    body = greedy("where is", 6)
    weights = {"a": 1.0, "x": 5.0, "b": 3.0}
    fields = {"method": "weighted_average", "weights": weights, "return_members": True}
    answer = await ask(engine, body, "lenient", **fields)
    assert answer["absent_members"] == ["x"]
    assert [member["name"] for member in answer["choices"][0]["members"]] == ["a", "b"]
    alone = await ask(engine, body, "lenient", member="x")
    assert isinstance(alone, Refusal)
    assert alone.status == 503

    sort = {"task": "classification", "labels": ["A", "B"], "on_member_error": "degrade"}
    await engine.prepare(version(folders, "sorted", members, **sort))
    answer = await engine.predict(
        PredictCall("sorted@1", (Text("x"),), "test", return_members=True)
    )
    assert answer.absent == ("x",)
    assert len(answer.member_answers) == 2
    for each in ("lenient", "sorted"):
        await engine.release(f"{each}@1")
    assert metrics.REGISTRY.get_sample_value("choir_members_absent", name) is None


async def leave(engine: Any, body: dict[str, Any], parts: int) -> None:
    """Reads a few parts of a stream, then leaves."""
    call = GenerateCall("five@1", "completions", {**body, "stream": True}, "gone")
    answer = engine.generate(call)
    for _ in range(parts):
        await anext(answer, None)
    await answer.aclose()


async def burst(engine: Any, groups: int, seed: int) -> None:
    """Runs groups that are answered, abandoned, cancelled at a deadline, or stopped, all at once."""
    rng = random.Random(seed)
    limit = asyncio.Semaphore(24)

    async def one(text: str) -> None:
        body = greedy(text, rng.randrange(1, 30), stop=["a"] if rng.random() < 0.3 else [])
        fate = rng.choice(["run", "leave", "deadline"])
        async with limit:
            if fate == "run":
                assert not isinstance(await ask(engine, body, "five"), Refusal)
            elif fate == "leave":
                await leave(engine, body, rng.randrange(3))
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.random() / 5):
                        await ask(engine, body, "guided")

    await asyncio.gather(*(one(text) for text in prompts(groups, seed)))


async def nothing_left(engine: Any) -> None:
    """Fails unless no request is left, the engine is idle, and it still answers."""
    for _ in range(100):
        if not engine._llm.output_processor.request_states:
            break
        await asyncio.sleep(0.1)
    assert not engine._llm.output_processor.request_states
    assert set(engine.state().versions.values()) == {0}
    await asyncio.sleep(1.0)
    family = psutil.Process().children(recursive=True)
    cores = [each for each in family if "VLLM::EngineCore" in " ".join(each.cmdline())]
    assert cores
    before = sum(sum(core.cpu_times()[:2]) for core in cores)
    await asyncio.sleep(3.0)
    spent = sum(sum(core.cpu_times()[:2]) for core in cores) - before
    print(f"{spent:.2f} CPU seconds in 3 idle ones")
    assert spent < 1.0
    answer = await ask(engine, greedy("where is my card", 5))
    assert len(answer["choices"][0]["token_ids"]) == 5


async def test_groups_that_end_in_every_way_leave_nothing_behind(engine: Any) -> None:
    await burst(engine, 48, seed=11)
    await nothing_left(engine)


@pytest.mark.slow
async def test_two_thousand_groups_leave_nothing_behind(engine: Any) -> None:
    await burst(engine, 2000, seed=12)
    await nothing_left(engine)
