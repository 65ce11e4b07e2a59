"""CLIP and SigLIP in a real engine, with LoRAs on the images' tower, the texts', or both, against transformers and
PEFT."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from serve.engine.interface import (
    EmbedCall,
    Embeddings,
    EngineSettings,
    PredictCall,
    Prediction,
    PrepareError,
    Text,
)
from serve.errors import Refusal
from serve.images.limits import ImageLimits
from tests.serve import towers
from tests.serve.engine.calls import member_probabilities, version
from tests.serve.images.hostile import hostile, url_of
from tests.serve.towers import Reference

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

FAMILIES = ("clip", pytest.param("siglip", marks=pytest.mark.slow))
NAMES = ("vision", "text", "both")
RANKS = {"vision": 4, "text": 8, "both": 16, "new": 8}
INTENTS: dict[str, Any] = {"task": "classification", "labels": ["A", "B", "C"]}
PICTURES, TEXTS = towers.pictures(6), towers.texts(6)
EVERY = [*PICTURES, *TEXTS]


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    family, root = request.param, tmp_path_factory.mktemp("towers")
    base = towers.base(family, root / "base")
    targets = towers.TARGETS[family]
    every = {**targets, "new": targets["both"]}
    return {
        "base": base,
        **{
            name: towers.lora(base, root / name, every[name], seed=seed, rank=rank)
            for seed, (name, rank) in enumerate(RANKS.items(), start=1)
        },
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(made: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(made["base"]),
            kind="encoder",
            adapter_slots=4,
            max_lora_rank=16,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 8 << 20,
                "max_num_batched_tokens": 96,
                "max_num_seqs": 16,
            },
            images=ImageLimits(pixels=10_000),
        )
    )
    probes = await engine.prepare(version(made, "seen", {each: each for each in NAMES}, **INTENTS))
    assert all(probe.change > 0.1 for probe in probes)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def references(made: dict[str, Path]) -> dict[str, Reference]:
    every = {name: Reference(made["base"], made[name]) for name in RANKS}
    return {**every, "plain": Reference(made["base"], None)}


def asked(given: Any) -> Text:
    return Text(given) if isinstance(given, str) else Text("", image=url_of(given))


async def predict(engine: Any, inputs: list[Any], key: str = "seen@1", **fields: Any) -> Any:
    call = PredictCall(key, tuple(map(asked, inputs)), "test", return_members=True, **fields)
    return await engine.predict(call)


async def test_members_equal_peft_with_images_and_texts_in_one_batch(
    engine: Any, references: dict[str, Reference]
) -> None:
    """Also the plain base in the same batches, whose vectors gates read."""
    order = list(range(len(EVERY)))
    random.Random(1).shuffle(order)
    plain = engine._encoder.plain(engine._queue.for_call(), [asked(EVERY[at]) for at in order])
    calls = [predict(engine, [EVERY[at]]) for at in order]
    vectors, all_at_once, *alone = await asyncio.gather(plain, predict(engine, EVERY), *calls)
    for given, vector in zip(order, vectors.vectors, strict=True):
        expected = references["plain"].vector(EVERY[given]).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-4)
    expected = np.array(
        [[references[name].probabilities(each) for each in EVERY] for name in NAMES]
    )
    assert isinstance(all_at_once, Prediction), all_at_once
    np.testing.assert_allclose(member_probabilities(all_at_once), expected, atol=1e-4)
    np.testing.assert_allclose(all_at_once.answers.probabilities, expected.mean(0), atol=1e-4)
    for place, answer in zip(order, alone, strict=True):
        said = member_probabilities(answer)[:, 0]
        np.testing.assert_allclose(said, expected[:, place], atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.1  # members differ


async def test_a_swapped_member_answers_at_once(
    engine: Any, made: dict[str, Path], references: dict[str, Reference]
) -> None:
    """Images are cached for each adapter: the new one must not be given what the old one saw."""
    members = {"vision": "vision", "both": "new"}
    await engine.prepare(version(made, "again", members, **INTENTS))
    answer = await predict(engine, EVERY, "again@1")
    expected = [
        [references[name].probabilities(each) for each in EVERY] for name in members.values()
    ]
    np.testing.assert_allclose(member_probabilities(answer), expected, atol=1e-4)
    await engine.release("again@1")


async def test_labels_by_prompts_equal_the_scaled_cosines(
    engine: Any, made: dict[str, Path], tmp_path: Path
) -> None:
    """Of the base and of LoRAs without heads; images and texts in one call."""
    words = [["a photo of a card", "my card"], ["a photo of a phone", "my phone"]]
    folders = {
        "vision": towers.lora(made["base"], tmp_path / "v", ["fc1"], seed=8, rank=4, labels=None),
        "text": towers.lora(
            made["base"], tmp_path / "t", r".*text_model.*q_proj", seed=9, rank=4, labels=None
        ),
    }
    prompts: dict[str, Any] = {
        "task": "classification",
        "labels": ["card", "phone"],
        "prompts": ["a photo of a {label}", "my {label}"],
    }
    for key, members, adapters in (
        ("alone", {"plain": None}, [None]),
        *(
            (f"with-{name}", {name: name, "plain": None}, [own, None])
            for name, own in folders.items()
        ),
    ):
        await engine.prepare(version({**made, **folders}, key, members, **prompts))
        answer = await predict(engine, EVERY, f"{key}@1")
        expected = [
            [Reference(made["base"], folder).zero_shot(each, words) for each in EVERY]
            for folder in adapters
        ]
        np.testing.assert_allclose(member_probabilities(answer), expected, atol=1e-4)
        await engine.release(f"{key}@1")


async def test_an_adapter_with_a_head_is_refused_beside_prompts(
    engine: Any, made: dict[str, Path]
) -> None:
    prompts: dict[str, Any] = {**INTENTS, "prompts": ["a photo of a {label}"]}
    with pytest.raises(PrepareError, match="has a head, and this ensemble classifies by its"):
        await engine.prepare(version(made, "odd", {"vision": "vision"}, **prompts))


async def test_embeddings_of_texts_and_of_token_ids(
    engine: Any, made: dict[str, Path], references: dict[str, Reference]
) -> None:
    """SigLIP reads padding tokens too, which a client's token ids lack."""
    expected = [references["plain"].vector(text).numpy() for text in TEXTS]
    ids = AutoTokenizer.from_pretrained(made["base"])(TEXTS)["input_ids"]
    of_texts = await engine.embed(EmbedCall("seen@1", tuple(TEXTS), "r", normalize=False))
    of_tokens = await engine.embed(
        EmbedCall("seen@1", tuple(map(tuple, ids)), "r", normalize=False)
    )
    assert isinstance(of_texts, Embeddings), of_texts
    np.testing.assert_allclose(of_texts.vectors, expected, atol=1e-4)
    if engine._encoder.fills:
        assert isinstance(of_tokens, Refusal)
        assert (of_tokens.status, "send texts" in of_tokens.message) == (400, True)
    else:
        np.testing.assert_allclose(of_tokens.vectors, expected, atol=1e-4)


async def test_an_image_counts_as_one_token(engine: Any) -> None:
    answer = await predict(engine, PICTURES[:2])
    assert (answer.prompt_tokens, answer.member_tokens) == (2, 6)


@pytest.mark.parametrize("name", ["a path", "a truncated PNG", "an SVG"])
async def test_a_hostile_image_is_refused_beside_good_ones(engine: Any, name: str) -> None:
    url, words = hostile()[name]
    inputs = (asked(PICTURES[0]), Text("", image=url))
    refusal = await engine.predict(PredictCall("seen@1", inputs, "test"))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, "input")
    assert re.match(rf"input\[1\]\.image: .*{words}", refusal.message)


async def test_the_engine_keeps_the_limits_of_its_settings(engine: Any) -> None:
    large = towers.pictures(1)[0].resize((101, 100))
    refusal = await predict(engine, [large])
    assert isinstance(refusal, Refusal)
    assert "input.image: The image has 101 x 100 pixels, and at most 10,000" in refusal.message
    assert isinstance(await predict(engine, [large.resize((100, 100))]), Prediction)


async def test_a_module_that_takes_no_lora_is_refused_by_name(
    engine: Any, made: dict[str, Path], tmp_path: Path
) -> None:
    """vLLM itself leaves out what it does not know, and says nothing."""
    siglip = "projection_size" in (made["base"] / "config.json").read_text()
    module = "vision_model.head.attention.out_proj" if siglip else "position_embedding"
    odd = towers.lora(made["base"], tmp_path / "odd", [module, "fc1"], seed=7, rank=4)
    with pytest.raises(PrepareError, match=module):
        await engine.prepare(version({**made, "odd": odd}, "odd", {"odd": "odd"}, **INTENTS))
    assert "odd@1" not in engine.state().versions
