"""Sequence classifiers of PEFT and transformers over BERT-like bases, in a real engine: alone, fused with a member that
reads the mean, and swapped, against transformers and PEFT."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serve.digest import folder_digest
from serve.engine.interface import (
    EmbedCall,
    Embeddings,
    EngineSettings,
    PredictCall,
    Prediction,
    Text,
    Version,
)
from serve.errors import Refusal
from serve.gateway.routes import classify, embeddings
from serve.manifest import Ensemble
from tests.serve.adapter.head import families
from tests.serve.adapter.head.families import FAMILIES, LABELS, PAIRS, TEXTS

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

SHAPES = (
    "bert",
    pytest.param("distilbert", marks=pytest.mark.slow),
    # Each takes an engine of its own, and the offline reference is tested over all of them.
    pytest.param("roberta", marks=pytest.mark.slow),
    pytest.param("modernbert", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=SHAPES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A base, and the adapters over it."""
    family, root = request.param, tmp_path_factory.mktemp("classifiers")
    own = FAMILIES[family]
    base = families.base(family, root / "base")
    classifier = families.classifier
    return {
        "base": base,
        "a": classifier(base, root / "a", own.attention, seed=1),
        "b": classifier(base, root / "b", own.linear, seed=2, use_rslora=True),
        "new": classifier(base, root / "new", own.linear, seed=4),
        "mean": families.mean_member(base, root / "mean", own.attention, seed=3),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(made: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(made["base"]),
            kind="encoder",
            adapter_slots=5,
            max_lora_rank=8,
            dtype="float32",
            arguments={"kv_cache_memory_bytes": 8 << 20, "max_num_seqs": 8},
        )
    )
    yield engine
    await engine.close()


def version(made: Mapping[str, Path], number: int, **members: str) -> Version:
    """`members`: name -> its adapter."""
    digests = {name: folder_digest(made[adapter]) for name, adapter in members.items()}
    ensemble = Ensemble.model_validate(
        {
            "format": 1,
            "name": "topics",
            "version": number,
            "task": "classification",
            "labels": list(LABELS),
            "fusion": {"method": "average"},
            "members": [
                {"name": name, "adapters": [{"adapter": adapter, "digest": digests[name]}]}
                for name, adapter in members.items()
            ],
        }
    )
    folders = {digests[name]: str(made[adapter]) for name, adapter in members.items()}
    return Version(ensemble, folders)


async def answers(engine: Any, key: str, member: str | None = None) -> Prediction:
    call = PredictCall(key, tuple(map(Text, TEXTS)), "r", member=member, return_members=True)
    prediction = await engine.predict(call)
    assert isinstance(prediction, Prediction), prediction
    return prediction


async def vectors_are(
    engine: Any, member: str | None, expected: np.ndarray, inputs: Any = TEXTS
) -> None:
    """Compare the vectors of the texts, raw and of the length 1, with `expected`."""
    raw = await engine.embed(EmbedCall("topics@1", inputs, "r", member=member, normalize=False))
    assert isinstance(raw, Embeddings), raw
    np.testing.assert_allclose(raw.vectors, expected, atol=1e-3)
    unit = await engine.embed(EmbedCall("topics@1", inputs, "r", member=member))
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.vectors, expected / lengths, atol=1e-3)


async def test_members_and_their_fusion_answer_as_transformers_does(
    engine: Any, made: dict[str, Path]
) -> None:
    expected = {
        name: np.asarray(families.probabilities(made["base"], made[name]))
        for name in ("a", "b", "mean", "new")
    }
    for number, a in enumerate(("a", "new"), start=1):
        candidate = version(made, number, a=a, b="b", mean="mean")
        await engine.prepare(candidate)
        right = [expected[a], expected["b"], expected["mean"]]
        fused = await answers(engine, candidate.key)
        assert fused.member_answers is not None
        for said, own in zip(fused.member_answers, right, strict=True):
            np.testing.assert_allclose(said.probabilities, own, atol=1e-3)
        np.testing.assert_allclose(fused.answers.probabilities, np.mean(right, axis=0), atol=1e-3)
        alone = await answers(engine, candidate.key, "a")
        np.testing.assert_allclose(alone.answers.probabilities, expected[a], atol=1e-3)
    again = await answers(engine, "topics@1", "a")
    np.testing.assert_allclose(again.answers.probabilities, expected["a"], atol=1e-3)
    await engine.release("topics@1")
    await engine.release("topics@2")


async def test_pairs_are_read_as_transformers_joins_them(
    engine: Any, made: dict[str, Path]
) -> None:
    """Pairs and single texts in one call, and so in one batch."""
    inputs = (*PAIRS, *TEXTS)
    texts = tuple(Text(each) if isinstance(each, str) else Text(*each) for each in inputs)
    right = [families.probabilities(made["base"], made[name], inputs) for name in ("a", "b")]
    await engine.prepare(version(made, 1, a="a", b="b"))
    fused = await engine.predict(PredictCall("topics@1", texts, "r", return_members=True))
    assert isinstance(fused, Prediction), fused
    assert fused.member_answers is not None
    said = [each.probabilities for each in fused.member_answers]
    np.testing.assert_allclose(said, right, atol=1e-3)
    np.testing.assert_allclose(fused.answers.probabilities, np.mean(right, axis=0), atol=1e-3)
    turned = tuple(Text(second, first) for first, second in PAIRS)
    other = await engine.predict(PredictCall("topics@1", turned, "r", member="a"))
    moved = np.abs(np.asarray(other.answers.probabilities) - right[0][: len(PAIRS)])
    assert moved.max() > 0.01, "the order of a pair must count"
    for pair, words in ((("no " * 40, "yes " * 40), "A pair is"), (("no", "x" * 10**7), "long")):
        refused = await engine.predict(PredictCall("topics@1", (Text(*pair),), "r"))
        assert isinstance(refused, Refusal)
        assert (refused.status, words in refused.message) == (400, True), refused
    await engine.release("topics@1")

    await engine.prepare(version(made, 2, a="a", mean="mean"))
    refused = await engine.predict(PredictCall("topics@2", texts[:1], "r"))
    assert isinstance(refused, Refusal)
    assert (refused.status, "single texts" in refused.message) == (400, True)
    alone = await engine.predict(PredictCall("topics@2", texts, "r", member="a"))
    assert isinstance(alone, Prediction), alone
    np.testing.assert_allclose(alone.answers.probabilities, right[0], atol=1e-3)
    await engine.release("topics@2")


async def test_vectors_equal_those_of_transformers_and_peft(
    engine: Any, made: dict[str, Path]
) -> None:
    await engine.prepare(version(made, 1, a="a", mean="mean"))
    # The base's vector is the mean, a classifier reads the first token's, and the last member the mean.
    base = made["base"]
    await vectors_are(engine, None, families.vectors(base, None, "mean"))
    await vectors_are(engine, "a", families.vectors(base, made["a"], "cls"))
    await vectors_are(engine, "mean", families.vectors(base, made["mean"], "mean"))
    tokens = families.tokens(base)
    await vectors_are(engine, "a", families.vectors(base, made["a"], "cls"), inputs=tokens)
    for inputs, words in (
        (("word " * 500,), "shorten"),
        (((0,) * 500,), "shorten"),
        (((999_999,),), "999999"),
    ):
        refused = await engine.embed(EmbedCall("topics@1", inputs, "r"))
        assert isinstance(refused, Refusal)
        assert (refused.status, words in refused.message) == (400, True)
    await engine.release("topics@1")


async def test_vllm_reads_the_documents_as_its_own(engine: Any, made: dict[str, Path]) -> None:
    from vllm.entrypoints.pooling.classify.protocol import ClassificationResponse
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingResponse

    await engine.prepare(version(made, 1, a="a", mean="mean"))
    head = {"id": "r", "object": "list", "created": 1, "model": "topics@1"}
    written = head | classify.answer(await answers(engine, "topics@1"))
    assert ClassificationResponse.model_validate(written).model_dump() == written
    vectors = await engine.embed(EmbedCall("topics@1", TEXTS, "r"))
    assert vectors.prompt_tokens == sum(map(len, families.tokens(made["base"])))
    written = head | embeddings.answer(vectors, as_base64=False)
    assert EmbeddingResponse.model_validate(written).model_dump() == written
    await engine.release("topics@1")
