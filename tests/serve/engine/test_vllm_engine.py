"""One real vLLM engine with every adapter slot in use, against PEFT."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serve.digest import folder_digest
from serve.engine.interface import (
    VERSION_NOT_LOADED,
    EngineSettings,
    GenerateCall,
    PredictCall,
    Prediction,
    PrepareError,
    Refusal,
    Text,
    Version,
)
from serve.manifest import Ensemble
from tests.serve import tiny
from tests.serve.engine.calls import member_probabilities

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

SLOTS = 3
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
RANKS = {"a": 8, "b": 16, "c": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("engine")
    base = tiny.causal_base(root / "base", context=512)
    folders = {
        name: tiny.lora(base, root / name, seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(RANKS.items(), start=1)
    }
    return {"base": base, **folders}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=SLOTS,
            max_lora_rank=16,
            dtype="float32",
            arguments={"kv_cache_memory_bytes": 256 << 20},
        )
    )
    for name, labels, scoring in (("single", SINGLE, "sum"), ("long", LONG, "mean")):
        await engine.prepare(version(models, name, labels=labels, label_scoring=scoring))
    await engine.prepare(version(models, "talk", task="generation", fusion={"method": "vote"}))
    yield engine
    await engine.close()


def version(
    models: dict[str, Path],
    name: str,
    *,
    number: int = 1,
    members: dict[str, str | None] | None = None,
    task: str = "classification",
    **fields: Any,
) -> Version:
    """An ensemble of all adapters and the plain base, unless `members` says otherwise."""
    members = {"a": "a", "b": "b", "c": "c", "plain": None} if members is None else members
    digests = {adapter: folder_digest(models[adapter]) for adapter in members.values() if adapter}
    manifest = {
        "format": 1,
        "name": name,
        "version": number,
        "task": task,
        "members": [
            {
                "name": member,
                "adapters": [{"adapter": adapter, "digest": digests[adapter]}] if adapter else [],
            }
            for member, adapter in members.items()
        ],
        "fusion": {"method": "average"},
        **fields,
    }
    if task == "classification":
        manifest["template"] = "{text}\nIntent: "
    return Version(
        Ensemble.model_validate(manifest),
        {digest: str(models[adapter]) for adapter, digest in digests.items()},
    )


def ask(key: str, texts: list[str], **fields: Any) -> PredictCall:
    return PredictCall(
        key, tuple(Text(text) for text in texts), "test", return_members=True, **fields
    )


def reference(models: dict[str, Path], labels: list[str], *, mean: bool) -> np.ndarray:
    """[members, texts, labels] by PEFT, one whole forward pass a label."""
    rows = []
    for name in ("a", "b", "c", None):
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
    engine: Any, models: dict[str, Path], name: str, labels: list[str], mean: bool
) -> None:
    expected = reference(models, labels, mean=mean)
    cold = await engine.predict(ask(f"{name}@1", TEXTS))
    hot = await engine.predict(ask(f"{name}@1", TEXTS))
    for answer in (cold, hot):
        np.testing.assert_allclose(member_probabilities(answer), expected, atol=1e-4)
        np.testing.assert_allclose(answer.answers.probabilities, expected.mean(0), atol=1e-4)
    assert len(engine.state().adapters) == SLOTS


async def test_greedy_tokens_equal_peft(engine: Any, models: dict[str, Path]) -> None:
    for member in ("a", "b", "plain"):
        peft = tiny.Reference(models["base"], models.get(member))
        expected = peft.greedy(TEXTS[0], 24)
        body = {
            "prompt": TEXTS[0],
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = await complete(engine, body, member=member)
        assert answer["choices"][0]["token_ids"] == expected
        assert answer["model"] == f"talk@1/{member}"


async def complete(engine: Any, body: dict[str, Any], **fields: Any) -> Any:
    call = GenerateCall("talk@1", "completions", body, "test", **fields)
    (part,) = [part async for part in engine.generate(call)]
    return part if isinstance(part, Refusal) else json.loads(part)


async def test_label_scoring_leaves_the_log_probabilities_of_its_batch_mates_alone(
    engine: Any,
) -> None:
    body = {"prompt": "how do I", "max_tokens": 6, "temperature": 0, "logprobs": 3}
    alone = (await complete(engine, body, member="a"))["choices"][0]["logprobs"]
    together = await asyncio.gather(
        *(complete(engine, body, member="a") for _ in range(4)),
        *(engine.predict(ask("single@1", [f"{text} {i}"])) for i in range(4) for text in TEXTS),
    )
    for answer in together[:4]:
        logprobs = answer["choices"][0]["logprobs"]
        assert [set(top) for top in logprobs["top_logprobs"]] == [
            set(top) for top in alone["top_logprobs"]
        ]
        np.testing.assert_allclose(logprobs["token_logprobs"], alone["token_logprobs"], atol=1e-4)


async def test_members_vote_on_whole_answers(engine: Any, models: dict[str, Path]) -> None:
    body = {"prompt": TEXTS[0], "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    alone = [
        (await complete(engine, body, member=name))["choices"][0]["text"]
        for name in ("a", "b", "c", "plain")
    ]
    fused = await complete(engine, body, return_members=True)
    assert [member["text"] for member in fused["choices"][0]["members"]] == alone
    assert fused["choices"][0]["text"] in alone
    prompt = fused["usage"]["prompt_tokens"]
    assert fused["usage"]["member_tokens"] == 4 * (prompt + 4)
    heavy = await complete(engine, body, weights={"a": 0, "b": 0, "c": 1, "plain": 0})
    assert heavy["choices"][0]["text"] == alone[2]


@pytest.mark.parametrize("field", ["n", "logprobs", "prompt_logprobs"])
async def test_what_a_vote_cannot_honour_is_refused(engine: Any, field: str) -> None:
    refusal = await complete(engine, {"prompt": "a", field: 2})
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, field)


async def test_a_text_longer_than_the_context_is_refused(engine: Any) -> None:
    refusal = await engine.predict(ask("single@1", ["card " * 600]))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert "512" in refusal.message


async def test_a_version_that_is_not_loaded_says_so(engine: Any) -> None:
    refusal = await engine.predict(ask("single@2", TEXTS))
    assert isinstance(refusal, Refusal)
    assert refusal.code == VERSION_NOT_LOADED


async def test_a_version_that_does_not_fit_the_slots_changes_nothing(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    extra = tiny.lora(models["base"], tmp_path / "d", seed=9)
    before = engine.state()
    with pytest.raises(PrepareError, match="slots"):
        await engine.prepare(
            version({**models, "d": extra}, "more", members={"a": "a", "d": "d"}, labels=SINGLE)
        )
    assert engine.state() == before


async def test_release_waits_for_its_requests_and_frees_the_slots(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    """Slots are shared: an adapter leaves with the last version that uses it."""
    for name in ("single", "long"):
        await engine.release(f"{name}@1")
    assert len(engine.state().adapters) == SLOTS, "talk@1 still uses all three"

    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    stream = engine.generate(GenerateCall("talk@1", "completions", body, "t", member="a"))
    first = await anext(stream)
    releasing = asyncio.create_task(engine.release("talk@1"))
    parts = [first, *[part async for part in stream]]
    await releasing
    assert b"".join(parts).rstrip().endswith(b"[DONE]"), "the stream ran to its end"
    assert engine.state().adapters == ()
    assert engine.state().versions == {}

    nothing = tiny.lora(models["base"], tmp_path / "nothing", seed=5, scale=0.0)
    probes = await engine.prepare(
        version({**models, "n": nothing}, "probed", members={"a": "a", "n": "n"}, labels=SINGLE)
    )
    changes = {probe.digest: probe.change for probe in probes}
    assert changes[folder_digest(models["a"])] > 0.01
    assert changes[folder_digest(nothing)] == 0

    answer = await engine.predict(ask("probed@1", TEXTS))
    assert isinstance(answer, Prediction)
    expected = reference(models, SINGLE, mean=False)
    np.testing.assert_allclose(member_probabilities(answer)[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(member_probabilities(answer)[1], expected[3], atol=1e-4)
