"""Bases from nothing in vLLM: the engine answers what the offline reference does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.bundle import Bundle
from tests.training.conftest import TOPICS, chained, recipe_content
from training.offline.members import OfflineMembers
from training.pipeline import train

TEXTS = [ask for asks in TOPICS.values() for ask in asks]

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def scratch(kind: str, objective: str, answers: str) -> dict[str, Any]:
    architecture = "llama" if kind == "causal" else "bert"
    sizes = {"hidden": 64, "layers": 2, "heads": 2, "vocabulary": 400, "context": 96}
    return {
        "kind": kind,
        "answers": answers,
        "scratch": {"architecture": architecture, "objective": objective, "epochs": 1, **sizes},
        "stages": [{"kind": "fine_tuning", "ensembles": ["topics"], "epochs": 1}],
    }


@pytest.mark.parametrize(
    ("kind", "objective", "answers"),
    [
        ("causal", "autoregressive", "text"),
        ("causal", "autoregressive", "heads"),
        ("encoder", "masked_next_sentence", "heads"),
    ],
)
async def test_a_base_from_nothing_and_a_chain_of_stages_are_served(
    kind: str, objective: str, answers: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    from serve.engine.interface import EngineSettings, PredictCall, Prediction, Text, Version
    from serve.engine.vllm_engine import VLLMEngine

    base = scratch(kind, objective, answers)
    base["scratch"]["documents"] = ["{text}.\n{reply}"]
    stages = [{"kind": "lora", "rslora": True, "layers": 1}]
    if answers == "text":
        stages.append({"kind": "prompt", "virtual_tokens": 4})
    topics = recipe_content()["ensembles"][0]
    words = {key: topics[key] for key in ("template", "verbalizers")} if answers == "text" else {}
    ensembles = chained(stages, defaults={"epochs": 1, "batch_size": 16, "rank": 8}, **words)
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensembles[0], ensembles[2]])
    bundle = Bundle.open(train(recipe, tmp_path / "bundle").path)
    assert bundle.verify() == []
    engine = await VLLMEngine.start(
        EngineSettings(
            model=bundle.base_source,
            kind=bundle.base_kind(),
            adapter_slots=5,
            max_lora_rank=8,
            dtype="float32",
            arguments={"kv_cache_memory_bytes": 64 << 20} if kind == "causal" else {},
        )
    )
    try:
        for name in ("topics", "student"):
            ensemble = bundle.ensemble(name)
            folders = {
                ref.digest: str(bundle.adapter_dir(ref))
                for member in ensemble.members
                for ref in member.adapters
            }
            fitted = bundle.fusion_path(ensemble)
            await engine.prepare(Version(ensemble, folders, str(fitted) if fitted else None))
            texts = tuple(Text(text) for text in TEXTS)
            call = PredictCall(ensemble.id, texts, "test", method="average", return_members=True)
            answer = await engine.predict(call)
            assert isinstance(answer, Prediction), answer
            expected = OfflineMembers(bundle, ensemble).outputs(TEXTS)
            for member, found in zip(expected, answer.member_answers or (), strict=True):
                np.testing.assert_allclose(found.probabilities, member, atol=1e-3)
    finally:
        await engine.close()
