"""Log-probabilities of the prompt's tokens under the fused distribution, against PEFT's merged position by position."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.errors import Refusal
from tests.serve.engine.adapters.test_names import with_embeddings
from tests.serve.engine.calls import CASES, RANKS, ask, greedy, prompts, stream, version
from tests.serve.engine.fused import Judge, Merge, averaged, multiplied
from tests.serve.engine.lockstep.test_lockstep import stalls

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

FIVE = (*RANKS, "plain")
AS_LM_EVAL = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
TIE = 1e-5


def expected(judge: Judge, members: Sequence[str], ids: Sequence[int], merge: Merge) -> np.ndarray:
    """[T - 1, V] the fused log-probabilities that each token of a prompt but the first is read with."""
    each = np.stack(
        [np.asarray(judge.models[name].logits(ids).double().log_softmax(-1)) for name in members]
    )
    return np.array([merge(each[:, place]) for place in range(len(ids) - 1)])


def check(given: Any, fused: np.ndarray, ids: Sequence[int], top: int) -> None:
    """`prompt_logprobs` of a choice have each token, its rank, and the `top` likeliest ones."""
    first, *rows = given
    assert first is None
    assert len(rows) == len(ids) - 1
    for row, logs, token in zip(rows, fused, ids[1:], strict=True):
        own = row[str(token)]
        assert abs(own["logprob"] - logs[token]) < 1e-3
        close = (np.abs(logs - logs[token]) < TIE).sum()
        assert abs(own["rank"] - (logs >= logs[token]).sum()) < close
        best = sorted((entry["logprob"] for entry in row.values()), reverse=True)[:top]
        np.testing.assert_allclose(best, np.sort(logs)[::-1][:top], atol=1e-3)


async def test_they_equal_pefts_fused_at_every_position(engine: Any, judge: Judge) -> None:
    """Prompts of one token to two chunks, all at once, among single requests and groups that ask for none."""
    texts = prompts(5, seed=31)
    cases = [case for case in CASES if "prompts" not in case[2]]
    work = [(text, fields, merge) for text in texts for _, _, fields, merge in cases]
    body = {"prompt_logprobs": 3}
    fused, alone, _ = await asyncio.gather(
        asyncio.gather(*(ask(engine, greedy(t, 2, **body), **fields) for t, fields, _ in work)),
        asyncio.gather(*(ask(engine, greedy(t, 2, **body), member="b") for t in texts)),
        asyncio.gather(*(ask(engine, greedy(t, 20)) for t in texts)),
    )
    for (text, _, merge), answer in zip(work, fused, strict=True):
        assert not isinstance(answer, Refusal), answer
        choice, ids = answer["choices"][0], judge.tokenizer(text)["input_ids"]
        check(choice["prompt_logprobs"], expected(judge, FIVE, ids, merge), ids, 3)
        judge.check(choice, [(name, text) for name in FIVE], merge)
    for text, answer in zip(texts, alone, strict=True):
        choice, ids = answer["choices"][0], judge.tokenizer(text)["input_ids"]
        check(choice["prompt_logprobs"], expected(judge, ["b"], ids, averaged([1.0])), ids, 3)


async def test_an_evaluation_harness_reads_them_as_a_members(engine: Any, judge: Judge) -> None:
    """`lm_eval` asks so: several prompts as token ids, echoed with one log-probability. A token is the greedy one if
    nothing at its place is likelier."""
    texts = ["where is my card and why has it not arrived yet", "A B C D", "please cancel the"]
    rows = [judge.tokenizer(text)["input_ids"] for text in texts]
    written = (await ask(engine, greedy(texts[0], 5)))["choices"][0]["token_ids"]
    texts.append(texts[0])
    rows.append([*rows[0], *written])
    answer = await ask(engine, {**AS_LM_EVAL, "prompt": rows})
    assert not isinstance(answer, Refusal), answer
    greedy_ones = 0
    for choice, text, ids in zip(answer["choices"], texts, rows, strict=True):
        logprobs = choice["logprobs"]
        fused = expected(judge, FIVE, ids, averaged([0.2] * 5))
        chosen = fused[np.arange(len(fused)), ids[1:]]
        assert choice["text"].startswith(text)
        assert logprobs["token_logprobs"][0] is None
        np.testing.assert_allclose(logprobs["token_logprobs"][1:-1], chosen, atol=1e-3)
        tops = [max(top.values()) for top in logprobs["top_logprobs"][1:-1]]
        is_top = np.array(tops) == np.array(logprobs["token_logprobs"][1:-1])
        gaps = fused.max(axis=1) - chosen
        np.testing.assert_array_equal(is_top[gaps > TIE], False)
        np.testing.assert_array_equal(is_top[gaps == 0], True)
        greedy_ones += int(is_top.sum())
    assert greedy_ones >= len(written)
    zero = await ask(engine, {**AS_LM_EVAL, "prompt": rows[0], "max_tokens": 0})
    np.testing.assert_allclose(
        zero["choices"][0]["logprobs"]["token_logprobs"][1:],
        answer["choices"][0]["logprobs"]["token_logprobs"][1:-1],
        atol=1e-4,
    )


async def test_preempted_groups_tell_them_once(engine: Any, judge: Judge) -> None:
    """Four groups that fit when they are admitted, and no longer when they have grown."""
    before = stalls("preempted")
    texts = [f"{text}, why" for text in ("where is my card", "top up", "I want", "please tell me")]
    answers = await asyncio.gather(
        *(ask(engine, greedy(text, 120, prompt_logprobs=0), "guided") for text in texts)
    )
    assert stalls("preempted") > before
    for text, answer in zip(texts, answers, strict=True):
        choice, ids = answer["choices"][0], judge.tokenizer(text)["input_ids"]
        fused = expected(judge, ["a"], ids, averaged([1.0]))
        check(choice["prompt_logprobs"], fused, ids, 0)
        judge.check(choice, [("a", text)], averaged([1.0]))


async def test_a_chat_and_a_stream_have_them_too(engine: Any, judge: Judge) -> None:
    chat = {"messages": [{"role": "user", "content": "where is my card"}], "max_tokens": 2}
    answer = await ask(engine, {**chat, "prompt_logprobs": 1})
    ids = judge.tokenizer("user: where is my card\nassistant:")["input_ids"]
    fused = expected(judge, FIVE, ids, averaged([0.2] * 5))
    check(answer["prompt_logprobs"], fused, ids, 1)

    text = "please cancel the payment"
    body = greedy(text, 3, echo=True, n=2, temperature=1, seed=3, return_token_ids=False)
    whole, events = await asyncio.gather(ask(engine, body), stream(engine, body))
    for choice in whole["choices"]:
        streamed = [
            value
            for event in events
            for each in event["choices"]
            if each["index"] == choice["index"]
            for value in each["logprobs"]["token_logprobs"]
        ]
        assert streamed[0] is None
        np.testing.assert_allclose(
            streamed[1:], choice["logprobs"]["token_logprobs"][1:], atol=1e-4
        )


async def test_a_token_that_is_not_plausible_has_no_probability(engine: Any, judge: Judge) -> None:
    text = "where is my card and why"
    ids = judge.tokenizer(text)["input_ids"]
    weights = [0.6, 0.4]
    fields = {"method": "product", "weights": dict(zip(["yes", "no"], weights, strict=True))}
    body = greedy(text, 1, prompt_logprobs=0)
    free = await ask(engine, body, "guided", **fields)
    kept = await ask(engine, body, "guided", plausibility=0.9, **fields)
    logs = expected(judge, ["a"], ids, multiplied([1.0]))
    implausible = logs[np.arange(len(logs)), ids[1:]] < logs.max(axis=1) + np.log(0.9)
    assert implausible.any()
    for token, is_not, row, other in zip(
        ids[1:],
        implausible,
        kept["choices"][0]["prompt_logprobs"][1:],
        free["choices"][0]["prompt_logprobs"][1:],
        strict=True,
    ):
        assert (row[str(token)]["logprob"] == -9999.0) == is_not
        assert other[str(token)]["logprob"] > -100


async def test_an_adapter_of_the_head_has_its_own(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    """LoRA on the layer that makes logits, in one batch with an adapter that has none there."""
    folders = {**models, "embeds": with_embeddings(models["base"], tmp_path / "embeds")}
    await engine.prepare(version(folders, "heads", {"e": "embeds", "a": "a"}))
    judge = Judge(models["base"], {"e": [folders["embeds"]], "a": [models["a"]]})
    text = "my transfer is still pending, please tell me when the money will be there"
    ids = judge.tokenizer(text)["input_ids"]
    body = greedy(text, 2, prompt_logprobs=2)
    who: list[tuple[str | None, list[str]]] = [(None, ["e", "a"]), ("e", ["e"]), ("a", ["a"])]
    try:
        answers = await asyncio.gather(
            *(ask(engine, body, "heads", member=member) for member, _ in who)
        )
    finally:
        await engine.release("heads@1")
    for (_, members), answer in zip(who, answers, strict=True):
        merge = averaged([1 / len(members)] * len(members))
        given = answer["choices"][0]["prompt_logprobs"]
        check(given, expected(judge, members, ids, merge), ids, 2)


@pytest.mark.parametrize(
    "change", [{"prompt_logprobs": 0}, {"echo": True, "logprobs": 1}], ids=["asked", "echoed"]
)
async def test_members_with_prompts_of_their_own_have_none(engine: Any, change: Any) -> None:
    body = {"prompt": "where is my card", "max_tokens": 1, **change}
    refusal = await ask(engine, body, "guided", prompts={"no": "please"})
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, "prompt_logprobs")
    assert "same prompt" in refusal.message
