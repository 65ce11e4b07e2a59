"""Bases from scratch in vLLM: the engine's answers equal the offline reference's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from serve.base.side_files import read_tokenizer
from serve.bundle import Bundle
from serve.labels import encoder, fill
from tests.training.conftest import TOPICS, chained, recipe_content
from training.offline.members import OfflineMembers
from training.pipeline import train

TEXTS = [ask for asks in TOPICS.values() for ask in asks]
LIMIT = 12
"""The length of a written answer in tokens."""

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
async def test_a_base_from_scratch_and_a_chain_of_stages_are_served(
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
    replies = [recipe_content()["ensembles"][1]] if answers == "text" else []
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensembles[0], ensembles[2], *replies])
    bundle = Bundle.open(train(recipe, tmp_path / "bundle").path)
    assert bundle.verify() == []
    written = write_with_penalty(bundle) if replies else []
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
        if replies:
            assert await served_texts(engine, bundle) == written
    finally:
        await engine.close()


def write_with_penalty(bundle: Bundle) -> list[list[str]]:
    """Give the base a `generation_config.json` with a penalty and a second end token, and a tokenizer that ends every
    text, and write offline with them: the answers of all members together, then each one's own."""
    file = Path(bundle.base_source) / "generation_config.json"
    tokenizer = read_tokenizer(bundle.base_source)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[end]
    )
    tokenizer.save_pretrained(bundle.base_source)
    assert read_tokenizer(bundle.base_source)("x")["input_ids"][-1] == tokenizer.eos_token_id
    said = {"eos_token_id": [tokenizer.eos_token_id], "repetition_penalty": 1.3}
    file.write_text(json.dumps(said))
    ensemble = bundle.ensemble("replies")
    [longer] = OfflineMembers(bundle, ensemble).fused_answers(TEXTS[:1], "average", LIMIT)
    said["eos_token_id"].append(encoder(tokenizer)([f" {longer}"])[0][-1])
    file.write_text(json.dumps(said))
    offline = OfflineMembers(bundle, ensemble)
    written = [offline.fused_answers(TEXTS, "average", LIMIT), *offline.answers(TEXTS, LIMIT)]
    assert written[0][0] != longer
    return written


async def served_texts(engine: Any, bundle: Bundle) -> list[list[str]]:
    """The engine's answers to requests that set only greedy sampling."""
    from serve.engine.interface import GenerateCall, Version

    ensemble = bundle.ensemble("replies")
    refs = [ref for member in ensemble.members for ref in member.adapters]
    folders = {ref.digest: str(bundle.adapter_dir(ref)) for ref in refs}
    await engine.prepare(Version(ensemble, folders, None))
    texts = []
    for member in (None, *(each.name for each in ensemble.members)):
        texts.append([])
        for text in TEXTS:
            prompt = fill(ensemble.template, text)
            body = {"prompt": prompt, "temperature": 0, "max_tokens": LIMIT}
            call = GenerateCall(ensemble.id, "completions", body, "test", member=member)
            [answer] = [part async for part in engine.generate(call)]
            texts[-1].append(json.loads(answer)["choices"][0]["text"].strip())
    return texts
