"""Sequence classifiers of PEFT and transformers over BERT-like bases, in a real engine: alone, fused with a member that
reads the mean, and swapped, against transformers and PEFT."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serve.digest import folder_digest
from serve.engine.interface import EngineSettings, PredictCall, Prediction, Text, Version
from serve.manifest import Ensemble
from tests.serve.adapter.head import families
from tests.serve.adapter.head.families import FAMILIES, LABELS, TEXTS

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

SHAPES = (
    "bert",
    "distilbert",
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
