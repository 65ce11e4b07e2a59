"""Prefix and prompt adapters in one small real engine, beside LoRA and the base, against PEFT."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from scipy.special import log_softmax

from serve import metrics
from serve.digest import folder_digest
from serve.engine.adapters.member_adapters import PLACEHOLDER
from serve.engine.interface import GenerateCall, PredictCall, Prediction, PrepareError, Text
from serve.errors import Refusal
from tests.serve import tiny
from tests.serve.engine.calls import ask, greedy, member_probabilities, prompts, stream, version
from tests.serve.engine.fused import Judge, Merge, averaged, multiplied
from tests.serve.engine.soft_calls import (
    MEMBERS,
    MIXED,
    finish,
    make_judge,
    make_models,
    member_of,
    preemptions,
    stalls,
    start,
    sweep,
)

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

PRODUCT = [0.5, 0.6, 0.2, 0.3, -0.4]
SINGLE = ["A", "B", "C", "D"]
LONG = ["card not arrived", "card lost", "card lost abroad", "transfer pending", "top up"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("soft"))


@pytest.fixture(scope="module")
def judge(models: dict[str, Path]) -> Judge:
    return make_judge(models)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    engine = await start(models)
    yield engine
    await engine.close()


async def test_every_kind_equals_peft_in_the_same_batches(engine: Any, judge: Judge) -> None:
    """Prompts come in chunks, and the cache is full, cold at first and warm later."""
    texts = prompts(6, seed=1)
    await sweep(engine, judge, texts, seed=2)
    await sweep(engine, judge, texts, seed=3)


@pytest.mark.slow
async def test_fifty_prompts_of_every_kind_equal_peft(engine: Any, judge: Judge) -> None:
    judge.answers = judge.tokens = judge.ties = 0
    texts = prompts(50, seed=4)
    await sweep(engine, judge, texts, seed=5)
    await sweep(engine, judge, texts, seed=6)


async def test_fused_text_of_all_kinds_equals_peft_merged_token_by_token(
    engine: Any, judge: Judge
) -> None:
    """Members whose prompts differ in length by up to 40 virtual tokens; prompts of one token and of several chunks."""
    texts = prompts(6, seed=7)
    methods: list[tuple[dict[str, Any], Merge]] = [
        ({}, averaged([0.2] * 5)),
        (
            {"method": "product", "weights": dict(zip(MIXED, PRODUCT, strict=True))},
            multiplied(PRODUCT),
        ),
    ]
    work = [(text, *method) for text in texts for method in methods]
    singles = [(name, text) for name in MIXED for text in texts[:2]]
    answers, alone = await asyncio.gather(
        asyncio.gather(
            *(ask(engine, greedy(t, 16), "mixed", return_members=True, **f) for t, f, _ in work)
        ),
        asyncio.gather(*(ask(engine, greedy(t, 16), "every", member=n) for n, t in singles)),
    )
    for (text, _, merge), answer in zip(work, answers, strict=True):
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(name, text) for name in MIXED], merge)
        tokens = len(judge.tokenizer(text)["input_ids"])
        assert answer["usage"]["prompt_tokens"] == tokens
        assert answer["usage"]["member_tokens"] == 5 * (tokens + 16)
    for (name, text), answer in zip(singles, alone, strict=True):
        judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))


async def test_preempted_groups_of_all_kinds_equal_peft(engine: Any, judge: Judge) -> None:
    before = stalls("preempted")
    texts = [f"{text}, why" for text in ("where is my card", "top up", "I want", "please tell me")]
    answers = await asyncio.gather(*(ask(engine, greedy(text, 90), "pair") for text in texts))
    assert stalls("preempted") > before
    for text, answer in zip(texts, answers, strict=True):
        members = [("prefix40", text), ("prompt", text)]
        judge.check(answer["choices"][0], members, averaged([0.5, 0.5]))


async def test_preempted_members_equal_peft(engine: Any, judge: Judge) -> None:
    """Twelve requests that fit at first, and no longer when they have grown."""
    before = preemptions()
    work = [(name, f"{text}, why") for text in ("I want", "top up") for name in list(MEMBERS)[1:7]]
    bodies = [greedy(text, 90) for _, text in work]
    answers = await asyncio.gather(
        *(
            ask(engine, body, "every", member=name)
            for (name, _), body in zip(work, bodies, strict=True)
        )
    )
    for (name, text), answer in zip(work, answers, strict=True):
        judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))
    await engine._llm.do_log_stats()
    assert preemptions() > before


async def test_members_of_all_kinds_vote(engine: Any) -> None:
    body = greedy("where is my card", 5)
    del body["logprobs"]
    alone = [
        (await ask(engine, body, "mixed", member=name))["choices"][0]["text"] for name in MIXED
    ]
    answer = await ask(engine, body, "mixed", method="vote", return_members=True)
    assert [member["text"] for member in answer["choices"][0]["members"]] == alone
    prompt = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["member_tokens"] == 5 * (prompt + 5)


@pytest.mark.parametrize("labels", [SINGLE, LONG], ids=["single", "long"])
async def test_labels_scored_by_all_kinds_equal_peft(
    engine: Any, models: dict[str, Path], judge: Judge, labels: list[str]
) -> None:
    sort = {"task": "classification", "labels": labels, "template": "{text}\nIntent: "}
    await engine.prepare(version(models, "sorted", {m: MEMBERS[m] for m in MIXED}, **sort))
    texts = ["where is my card", "my transfer is still pending, tell me when it is there " * 5, "A"]
    call = PredictCall("sorted@1", tuple(map(Text, texts)), "test", return_members=True)
    expected = np.array(
        [
            [
                judge.models[name].probabilities(f"{text}\nIntent: ", [f" {x}" for x in labels])
                for text in texts
            ]
            for name in MIXED
        ]
    )
    for _ in ("cold", "warm"):
        answer = await engine.predict(call)
        assert isinstance(answer, Prediction), answer
        np.testing.assert_allclose(member_probabilities(answer), expected, atol=1e-4)
        np.testing.assert_allclose(answer.answers.probabilities, expected.mean(0), atol=1e-4)
    plain = {"plain": MEMBERS["plain"], "other": ["lora"]}
    await engine.prepare(version(models, "without", plain, **sort))
    without = await engine.predict(replace(call, version="without@1"))
    assert answer.prompt_tokens == without.prompt_tokens
    assert answer.member_tokens / 5 == without.member_tokens / 2
    await engine.release("sorted@1")
    await engine.release("without@1")


@pytest.mark.parametrize("member", ["prefix40", "prefix5", "mlp", "lora-prefix", "plain"])
async def test_log_probabilities_of_a_prompt(engine: Any, judge: Judge, member: str) -> None:
    """Requests for them leave nothing in the cache that changes other answers."""
    text = "my transfer is still pending, please tell me when the money will be there" * 2
    ids = judge.tokenizer(text)["input_ids"]
    logs = judge.models[member].logits(ids).double().log_softmax(-1)
    expected = [float(logs[place, token]) for place, token in enumerate(ids[1:])]
    for body in (
        greedy(text, 4, prompt_logprobs=1),
        greedy(text, 4),
        greedy(text, 4, prompt_logprobs=1),
    ):
        choice = (await ask(engine, body, "every", member=member))["choices"][0]
        judge.check(choice, [(member, text)], averaged([1.0]))
        if "prompt_logprobs" in body:
            first, *given = choice["prompt_logprobs"]
            assert first is None
            assert len(given) == len(expected)
            values = [
                entry[str(token)]["logprob"] for entry, token in zip(given, ids[1:], strict=True)
            ]
            np.testing.assert_allclose(values, expected, atol=1e-3)
    echoed = greedy(text, 4, echo=True, return_token_ids=False)
    choice = (await ask(engine, echoed, "every", member=member))["choices"][0]
    assert choice["text"].startswith(text)
    np.testing.assert_allclose(
        choice["logprobs"]["token_logprobs"][1 : len(ids)], expected, atol=1e-3
    )


async def test_fused_log_probabilities_of_a_prompt(engine: Any, judge: Judge) -> None:
    """Members come to a position in different steps: up to 40 virtual tokens and several chunks lie before it."""
    texts = ["my transfer is still pending, please tell me when the money will be there" * 2, "A"]
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    answers = await asyncio.gather(
        *(ask(engine, {**body, "prompt": text}, "mixed") for text in texts for _ in range(2))
    )
    for text, answer in zip([each for each in texts for _ in range(2)], answers, strict=True):
        ids = judge.tokenizer(text)["input_ids"]
        logits = np.stack([judge.models[name].logits(ids).double() for name in MIXED])
        logs = averaged([0.2] * 5)(np.asarray(log_softmax(logits, axis=-1)).reshape(5, -1))
        expected = logs.reshape(len(ids), -1)[np.arange(len(ids) - 1), ids[1:]]
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert logprobs[0] is None
        np.testing.assert_allclose(logprobs[1:-1], expected, atol=1e-3)


@pytest.mark.parametrize("member", ["prefix40", "mlp", "lora-prompt"])
async def test_penalties_do_not_count_virtual_tokens(
    engine: Any, models: dict[str, Path], judge: Judge, member: str
) -> None:
    """The placeholder token is made likely, so that a penalty on it would change the text."""
    text = "where is my card"
    ids = judge.tokenizer(text)["input_ids"]
    logits = judge.models[member].logits

    def written(seen: set[int], bias: float) -> list[int]:
        tokens: list[int] = []
        for _ in range(8):
            row = logits([*ids, *tokens])[-1].double()
            row[PLACEHOLDER] += bias
            for token in seen | set(tokens):
                row[token] = row[token] / 1.8 if row[token] > 0 else row[token] * 1.8
            tokens.append(int(row.argmax()))
        return tokens

    bias = next(
        each
        for each in np.arange(0.0, 100.0, 0.5)
        if written(set(ids), each) != written({*ids, PLACEHOLDER}, each)
    )
    penalties = {"repetition_penalty": 1.8, "logit_bias": {str(PLACEHOLDER): float(bias)}}
    body = greedy(text, 8, **penalties)
    alone = await ask(engine, body, "every", member=member)
    assert alone["choices"][0]["token_ids"] == written(set(ids), bias)
    twice = {"prompts": {"b": text}, "return_members": True}
    await engine.prepare(version(models, "twice", {"a": MEMBERS[member], "b": MEMBERS[member]}))
    fused = await ask(engine, body, "twice", **twice)
    assert fused["choices"][0]["token_ids"] == written(set(ids), bias)
    await engine.release("twice@1")


async def test_prompts_and_answers_fit_beside_the_virtual_tokens(
    engine: Any, models: dict[str, Path], judge: Judge
) -> None:
    """The limits are in the client's tokens. Virtual tokens take positions, and no count shows them to the client."""
    text = "card " * 60
    tokens = len(judge.tokenizer(text)["input_ids"])
    room = 256 - 40 - tokens
    answer = await ask(engine, greedy(text, room), "every", member="prefix40")
    assert answer["usage"] == {
        **answer["usage"],
        "prompt_tokens": tokens,
        "completion_tokens": room,
    }
    for asking, fields in ((ask, {"member": "prefix40"}), (stream, {"member": "mlp"}), (ask, {})):
        model = "every" if fields else "pair"
        refusal = await asking(engine, greedy(text, room + 1), model, **fields)
        assert isinstance(refusal, Refusal), refusal
        assert refusal.status == 400
        assert f"{tokens} tokens" in refusal.message
        assert "room for 216" in refusal.message
    chat = {
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = await ask(engine, chat, "every", member="prefix40")
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 216
    sort = {"task": "classification", "labels": ["A", "B"]}
    with_soft = version(models, "sorted", {"p": ["prefix40"]}, **sort)
    await engine.prepare(with_soft)
    refusal = await engine.predict(PredictCall("sorted@1", (Text("card " * 214),), "test"))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, "room for 216" in refusal.message) == (400, True), refusal
    await engine.release("sorted@1")


async def test_a_request_without_its_salt_is_an_error(engine: Any, judge: Judge) -> None:
    """Other requests in the same batch, and later ones, get their own answers."""
    text = "please cancel the payment that I made this morning"
    ids = judge.tokenizer(text)["input_ids"]
    for name in ("prefix40", "prompt", "lora-prefix"):
        member_adapters = engine._member_adapters(member_of(engine, name))
        whole = member_adapters.prompt({"prompt_token_ids": ids})
        other = engine._member_adapters(member_of(engine, "prefix16")).prompt(
            {"prompt_token_ids": ids}
        )
        wrong: list[dict[str, Any]] = [
            {"prompt_token_ids": whole["prompt_token_ids"]},
            {**whole, "cache_salt": other["cache_salt"]},
            {**whole, "cache_salt": f"base/{whole['cache_salt']}"},
        ]
        outcomes = await asyncio.gather(
            *(finish(engine, prompt, member_adapters) for prompt in wrong),
            ask(engine, greedy(text), "every", member=name),
            ask(engine, greedy(text), "mixed"),
        )
        assert outcomes[:3] == ["error"] * 3
        judge.check(outcomes[3]["choices"][0], [(name, text)], averaged([1.0]))
        members = [(each, text) for each in MIXED]
        judge.check(outcomes[4]["choices"][0], members, averaged([0.2] * 5))


async def test_an_adapter_that_a_worker_lacks_is_an_error(
    engine: Any, judge: Judge, models: dict[str, Path]
) -> None:
    """This holds if the whole prompt is in the cache, too. Nothing wrong stays in the cache."""
    text = "how do I change my address and my phone number " * 3
    for name in ("prefix40", "prompt"):
        member_adapters = engine._member_adapters(member_of(engine, name))
        assert member_adapters.soft is not None
        whole = member_adapters.prompt({"prompt_token_ids": judge.tokenizer(text)["input_ids"]})
        arguments = (member_adapters.soft.digest, member_adapters.soft.kind, str(models[name]))
        for warm in (True, False):
            if warm:
                await ask(engine, greedy(text), "every", member=name)
            else:
                assert await engine._llm.reset_prefix_cache()
            await engine._llm.collective_rpc("unload_soft", args=arguments[:1])
            outcomes = await asyncio.gather(
                finish(engine, whole, member_adapters),
                finish(engine, whole, member_adapters),
                ask(engine, greedy(text), "mixed"),
                ask(engine, {"prompt": text}, "mixed", method="vote"),
                ask(engine, greedy(text), "every", member="prefix16"),
            )
            assert outcomes[:2] == ["error"] * 2
            for refusal in outcomes[2:4]:
                assert isinstance(refusal, Refusal)
                assert refusal.status == 500
            judge.check(outcomes[4]["choices"][0], [("prefix16", text)], averaged([1.0]))
            (tokens,) = await engine._llm.collective_rpc("load_soft", args=arguments)
            assert tokens == member_adapters.soft.tokens
            answer = await ask(engine, greedy(text), "every", member=name)
            judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))


async def test_clients_cannot_reach_an_adapters_cache(engine: Any, judge: Judge) -> None:
    """A client sends the same token ids and the adapter's salt, and gets the plain base's answer."""
    text = "I want to top up my account with another card"
    ids = judge.tokenizer(text)["input_ids"]
    for name in ("prefix40", "prompt"):
        member_adapters = engine._member_adapters(member_of(engine, name))
        whole = member_adapters.prompt({"prompt_token_ids": ids})
        tokens, salt = whole["prompt_token_ids"], whole["cache_salt"]
        forged = {**greedy("", 8), "prompt": tokens, "cache_salt": salt}
        for _ in range(2):
            answer = await ask(engine, forged, "every", member="plain")
            logs = judge.models["plain"].logits([*tokens, *answer["choices"][0]["token_ids"][:-1]])
            expected = logs[len(tokens) - 1 :].argmax(-1).tolist()
            assert answer["choices"][0]["token_ids"] == expected
            answer = await ask(engine, greedy(text, 8), "every", member=name)
            judge.check(answer["choices"][0], [(name, text)], averaged([1.0]))
            salted = await ask(engine, greedy(text, 8, cache_salt="mine"), "every", member=name)
            judge.check(salted["choices"][0], [(name, text)], averaged([1.0]))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"kv_transfer_params": {"choir_soft": {}}}, "kv_transfer_params"),
        ({"vllm_xargs": {"choir_soft": "x"}}, "vllm_xargs"),
        ({"vllm_xargs": {"choir_compute_from": 1}}, "vllm_xargs"),
        ({"prompt": ""}, None),
        ({"prompt": []}, None),
    ],
)
@pytest.mark.parametrize("fields", [{"member": "prefix5"}, {"member": "prompt"}, {}])
async def test_parameters_that_clients_may_not_send_are_refused(
    engine: Any, change: Any, param: str | None, fields: Any
) -> None:
    refusal = await ask(
        engine, {**greedy("where"), **change}, "every" if fields else "mixed", **fields
    )
    assert isinstance(refusal, Refusal), refusal
    assert refusal.status == 400
    assert param is None or refusal.param == param


@pytest.mark.parametrize("kind", ["prompt_embeds", "image_embeds"])
async def test_vectors_in_a_chat_are_refused(engine: Any, kind: str) -> None:
    content = [{"type": kind, kind: "AAAA"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    refusal = await ask(engine, body, "every", member="prompt")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, "messages")


async def test_a_member_swaps_from_one_kind_to_another(
    engine: Any, judge: Judge, models: dict[str, Path]
) -> None:
    text = "the machine kept my card"
    history = ["lora", "prefix16", "prompt", "lora-prefix", "lora"]
    for number, name in enumerate(history, start=1):
        fields = {"version": number}
        probes = await engine.prepare(version(models, "swapped", {"a": MEMBERS[name]}, **fields))
        assert {probe.digest for probe in probes} == {
            folder_digest(models[each]) for each in MEMBERS[name]
        }
        assert all(probe.change > 0.01 for probe in probes)
        if number > 1:
            await engine.release(f"swapped@{number - 1}")
        call = GenerateCall(f"swapped@{number}", "completions", greedy(text), "test", member="a")
        (part,) = [part async for part in engine.generate(call)]
        judge.check(json.loads(part)["choices"][0], [(name, text)], averaged([1.0]))
    await engine.release(f"swapped@{len(history)}")
    kinds = {each.name: each.kind for each in engine.state().adapters}
    assert kinds == {
        "lora": "lora",
        "lora2": "lora",
        "prefix5": "prefix",
        "prefix16": "prefix",
        "prefix40": "prefix",
        "prompt": "prompt",
        "mlp": "prompt",
        "lstm": "prompt",
    }
    for name, kind in kinds.items():
        labels = {"adapter": name, "digest": folder_digest(models[name]), "kind": kind}
        assert metrics.REGISTRY.get_sample_value("choir_adapter_info", labels) == 1


async def test_adapters_that_cannot_be_combined_are_refused(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    base = models["base"]
    made = {
        "embeds": tiny.lora(base, tmp_path / "embeds", seed=1, targets=["embed_tokens", "q_proj"]),
        "long": tiny.prompt(base, tmp_path / "long", seed=1, tokens=255),
        "third": tiny.lora(base, tmp_path / "third", seed=9),
        "other": tiny.prefix(
            tiny.causal_base(tmp_path / "wide", layers=3), tmp_path / "other", seed=1, tokens=4
        ),
    }
    before = engine.state()
    held = await engine._llm.collective_rpc("unload_soft", args=("nothing",))
    for adapters, reason in (
        (["lora", "lora2"], "two LoRAs"),
        (["prefix5", "prompt"], "prefix and prompt"),
        (["embeds"], "token embeddings"),
        (["long"], "255 virtual tokens leave no room"),
        (["other"], r"the shape \[4, 384\]; by the base it must be \[4, 256\]"),
        (["third"], "All 2 adapter slots"),
    ):
        with pytest.raises(PrepareError, match=reason):
            await engine.prepare(version({**models, **made}, "never", {"m": adapters}))
    assert engine.state() == before
    assert await engine._llm.collective_rpc("unload_soft", args=("nothing",)) == held
