"""The shared engine with every adapter slot in use, against PEFT."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serve.digest import folder_digest
from serve.engine.interface import (
    MEMBER_FAILED,
    VERSION_NOT_LOADED,
    GenerateCall,
    PredictCall,
    Prediction,
    PrepareError,
    Text,
)
from serve.errors import Refusal
from tests.serve import tiny
from tests.serve.engine.calls import ask, member_probabilities, version
from tests.serve.fakes import until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MEMBERS = {"a": "a", "b": "b", "e": "e", "plain": None}
SORT: dict[str, Any] = {"task": "classification", "template": "{text}\nIntent: "}
SINGLE = ["A", "B", "C", "D"]
LONG = [
    "card not arrived",
    "card lost",
    "card lost abroad",
    "transfer pending",
    "transfer pending for days",
    "top up",
]
TEXTS = [
    "where is my card",
    "my transfer is still pending, tell me when the money will be there " * 6,
]
GREEDY: dict[str, Any] = {"prompt": TEXTS[0], "temperature": 0}


@pytest.fixture(scope="module")
def folders(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One more adapter, for the only slot that the shared engine's own ensembles leave free."""
    last = tiny.lora(models["base"], tmp_path_factory.mktemp("last") / "e", seed=9, rank=4)
    return {**models, "e": last}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def full(engine: Any, folders: dict[str, Path]) -> AsyncIterator[Any]:
    """The engine with every slot in use."""
    loaded = [
        version(folders, "single", MEMBERS, labels=SINGLE, label_scoring="sum", **SORT),
        version(folders, "long", MEMBERS, labels=LONG, label_scoring="mean", **SORT),
        version(folders, "talk", MEMBERS, fusion={"method": "vote"}),
    ]
    for each in loaded:
        await engine.prepare(each)
    yield engine
    for key in {f"{each.ensemble.name}@1" for each in loaded} & set(engine.state().versions):
        await engine.release(key)


def about(key: str, texts: list[str], **fields: Any) -> PredictCall:
    return PredictCall(
        key, tuple(Text(text) for text in texts), "test", return_members=True, **fields
    )


def reference(models: dict[str, Path], labels: list[str], *, mean: bool) -> np.ndarray:
    """[members, texts, labels] by PEFT, one whole forward pass a label."""
    rows = []
    for name in MEMBERS.values():
        peft = tiny.Reference(models["base"], models[name] if name else None)
        for text in TEXTS:
            prompt = f"{text}\nIntent: "
            texts = [f" {label}" for label in labels]
            scores = np.array(peft.label_scores(prompt, texts))
            if mean:
                stem = peft.tokenizer(prompt.rstrip())["input_ids"]
                whole = [peft.tokenizer(prompt + label)["input_ids"] for label in texts]
                scores /= np.array([len(ids) - len(stem) for ids in whole])
            rows.append(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
    return np.array(rows).reshape(4, len(TEXTS), len(labels))


@pytest.mark.parametrize(
    ("name", "labels", "mean"), [("single", SINGLE, False), ("long", LONG, True)]
)
async def test_members_equal_peft_with_all_slots_full_and_the_base_among_them(
    full: Any, folders: dict[str, Path], name: str, labels: list[str], mean: bool
) -> None:
    expected = reference(folders, labels, mean=mean)
    cold = await full.predict(about(f"{name}@1", TEXTS))
    hot = await full.predict(about(f"{name}@1", TEXTS))
    for answer in (cold, hot):
        np.testing.assert_allclose(member_probabilities(answer), expected, atol=1e-4)
        np.testing.assert_allclose(answer.answers.probabilities, expected.mean(0), atol=1e-4)
    state = full.state()
    assert len(state.adapters) == state.adapter_slots


async def test_greedy_tokens_equal_peft(full: Any, folders: dict[str, Path]) -> None:
    for member, adapter in MEMBERS.items():
        peft = tiny.Reference(folders["base"], folders[adapter] if adapter else None)
        body = {**GREEDY, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
        answer = await ask(full, body, "talk", member=member)
        assert answer["choices"][0]["token_ids"] == peft.greedy(TEXTS[0], 24)
        assert answer["model"] == f"talk@1/{member}"


async def test_label_scoring_does_not_change_log_probabilities_in_the_same_batch(
    full: Any,
) -> None:
    body = {"prompt": "how do I", "max_tokens": 6, "temperature": 0, "logprobs": 3}
    alone = (await ask(full, body, "talk", member="a"))["choices"][0]["logprobs"]
    together = await asyncio.gather(
        *(ask(full, body, "talk", member="a") for _ in range(4)),
        *(full.predict(about("single@1", [f"{text} {i}"])) for i in range(4) for text in TEXTS),
    )
    for answer in together[:4]:
        logprobs = answer["choices"][0]["logprobs"]
        assert [set(top) for top in logprobs["top_logprobs"]] == [
            set(top) for top in alone["top_logprobs"]
        ]
        np.testing.assert_allclose(logprobs["token_logprobs"], alone["token_logprobs"], atol=1e-4)


async def test_members_vote_on_whole_answers(full: Any) -> None:
    body = {**GREEDY, "max_tokens": 4, "ignore_eos": True}
    alone = [(await ask(full, body, "talk", member=name))["choices"][0]["text"] for name in MEMBERS]
    fused = await ask(full, body, "talk", return_members=True)
    assert [member["text"] for member in fused["choices"][0]["members"]] == alone
    assert fused["choices"][0]["text"] in alone
    prompt = fused["usage"]["prompt_tokens"]
    assert fused["usage"]["member_tokens"] == 4 * (prompt + 4)
    weights = {"a": 0, "b": 0, "e": 1, "plain": 0}
    heavy = await ask(full, body, "talk", weights=weights)
    assert heavy["choices"][0]["text"] == alone[2]


@pytest.mark.parametrize("field", ["n", "logprobs", "prompt_logprobs"])
async def test_parameters_that_a_vote_cannot_honour_are_refused(full: Any, field: str) -> None:
    refusal = await ask(full, {"prompt": "a", field: 2}, "talk")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, field)


async def test_a_text_longer_than_the_context_is_refused(full: Any) -> None:
    refusal = await full.predict(about("single@1", ["card " * 600]))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert "256" in refusal.message


async def test_a_version_that_is_not_loaded_says_so(full: Any) -> None:
    refusal = await full.predict(about("single@2", TEXTS))
    assert isinstance(refusal, Refusal)
    assert refusal.code == VERSION_NOT_LOADED


async def test_a_version_that_does_not_fit_the_slots_changes_nothing(
    full: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    extra = tiny.lora(folders["base"], tmp_path / "f", seed=10)
    before = full.state()
    more = version({**folders, "f": extra}, "more", {"a": "a", "f": "f"}, labels=SINGLE, **SORT)
    with pytest.raises(PrepareError, match="slots"):
        await full.prepare(more)
    assert full.state() == before


async def test_invalid_outputs_of_a_member_are_not_the_clients_fault(
    full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = full._causal.score

    async def broken(*args: Any, **kwargs: Any) -> Any:
        scored = await score(*args, **kwargs)
        scored.scores[1, 1, 2] = np.nan
        return scored

    monkeypatch.setattr(full._causal, "score", broken)
    for method in (None, "vote"):
        refusal = await full.predict(about("single@1", TEXTS, method=method))
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (500, MEMBER_FAILED)
        assert "single@1" in refusal.message
        assert "'b' in row 1" in refusal.message
    monkeypatch.undo()
    wrong = await full.predict(about("single@1", TEXTS[:1], method="median"))
    assert wrong.status == 400


@pytest.mark.parametrize("member", ["a", None])
async def test_an_abandoned_answer_ends_before_its_version_counts_as_idle(
    full: Any, member: str | None
) -> None:
    body = {**GREEDY, "max_tokens": 150, "ignore_eos": True}
    running = full._llm.output_processor.request_states
    answer = full.generate(GenerateCall("talk@1", "completions", body, "left", member=member))
    asking = asyncio.create_task(anext(answer))
    await until(lambda: running)
    asking.cancel()
    await asyncio.wait([asking])
    await answer.aclose()
    assert full.state().versions["talk@1"] == 0
    assert not running


async def test_scores_that_fail_leave_nothing_running(
    full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = full._llm.output_processor.request_states
    scoring = full._causal._scorer._continuations
    run = scoring._run
    calls = 0

    async def fails_at_once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await until(lambda: running)
            raise RuntimeError("one of them")
        return await run(*args)

    monkeypatch.setattr(scoring, "_run", fails_at_once)
    with pytest.raises(RuntimeError, match="one of them"):
        await full.predict(about("long@1", [text * 2 for text in TEXTS]))
    assert calls > 1
    assert full.state().versions["long@1"] == 0
    assert not running


async def test_release_waits_for_its_requests_and_frees_the_slot(
    full: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """An adapter leaves with the last version that uses it. The last test here: it releases what the others use."""

    def holds(adapter: str) -> bool:
        digest = folder_digest(folders[adapter])
        return any(each.digest == digest for each in full.state().adapters)

    for name in ("single", "long"):
        await full.release(f"{name}@1")
    assert holds("e"), "talk@1 still uses it"

    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    stream = full.generate(GenerateCall("talk@1", "completions", body, "t", member="e"))
    first = await anext(stream)
    releasing = asyncio.create_task(full.release("talk@1"))
    parts = [first, *[part async for part in stream]]
    await releasing
    assert b"".join(parts).rstrip().endswith(b"[DONE]"), "the stream ran to its end"
    assert not holds("e")
    assert holds("a"), "other ensembles use it"
    assert "talk@1" not in full.state().versions

    nothing = tiny.lora(folders["base"], tmp_path / "nothing", seed=5, scale=0.0)
    members = {"a": "a", "n": "n"}
    probes = await full.prepare(
        version({**folders, "n": nothing}, "probed", members, labels=SINGLE, **SORT)
    )
    changes = {probe.digest: probe.change for probe in probes}
    assert changes[folder_digest(folders["a"])] > 0.01
    assert changes[folder_digest(nothing)] == 0

    answer = await full.predict(about("probed@1", TEXTS))
    await full.release("probed@1")
    assert isinstance(answer, Prediction)
    expected = reference(folders, SINGLE, mean=False)
    np.testing.assert_allclose(member_probabilities(answer)[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(member_probabilities(answer)[1], expected[3], atol=1e-4)
