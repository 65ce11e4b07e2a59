"""Activated LoRAs on a real language model in bfloat16: as near to PEFT in float32 as PEFT itself comes in bfloat16."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from serve.engine.interface import EngineSettings
from serve.errors import Refusal
from serve.labels import INVOCATION
from tests.serve import tiny
from tests.serve.engine.calls import ask, greedy, version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

INVOCATIONS = {"a": "\nDescription:", "b": "\nIn short:"}
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEXTS = (
    "name[The Eagle], eatType[coffee shop], food[French], priceRange[moderate], area[riverside]",
    "The meeting is on Tuesday at three, in the room beside the kitchen. Please bring the figures.",
    "In 2024,",
)
TOKENS = 24
TIMES = 2.0
"""How many times the error of PEFT in bfloat16 the engine's may be: two computations, each with an error of its own."""


@pytest.fixture(scope="module")
def models(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    tokenizer = tiny.AutoTokenizer.from_pretrained(smollm2)
    made = {"base": smollm2}
    for seed, (name, text) in enumerate(INVOCATIONS.items(), start=1):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made[name] = tiny.lora(
            smollm2, root / name, seed=seed, targets=EVERY, scale=0.05, invocation=ids
        )
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            str(models["base"]),
            "causal",
            adapter_slots=2,
            max_lora_rank=8,
            dtype="bfloat16",
            arguments={
                "kv_cache_memory_bytes": 1 << 28,
                "max_model_len": 512,
                "max_num_seqs": 8,
            },
        )
    )
    members = {name: name for name in INVOCATIONS} | {"plain": None}
    await engine.prepare(version(models, "three", members, template=f"{{text}}{INVOCATION}"))
    yield engine
    await engine.close()


@torch.no_grad()
def log_probabilities(
    reference: tiny.Reference, text: str, own: str | None, tokens: Sequence[int]
) -> np.ndarray:
    """[T] of each of `tokens`, each after the ones before."""
    ids = reference.tokenizer(text)["input_ids"]
    start = len(ids) if own else None
    ids = ids + (reference.tokenizer(own)["input_ids"] if own else [])
    logits = reference.logits([*ids, *tokens[:-1]], start)[len(ids) - 1 :]
    logs = logits.double().log_softmax(-1)
    return np.asarray(logs[range(len(tokens)), list(tokens)])


async def test_members_are_as_near_as_bfloat16_is(engine: Any, models: dict[str, Path]) -> None:
    errors: dict[str, list[np.ndarray]] = {"engine": [], "PEFT": []}
    for name in (*INVOCATIONS, "plain"):
        own = INVOCATIONS.get(name)
        exact = tiny.Reference(models["base"], *([models[name]] if own else []))
        rough = tiny.Reference(models["base"], *([models[name]] if own else []))
        rough.model.to(torch.bfloat16)
        for text in TEXTS:
            answer = await ask(engine, greedy(text + INVOCATION, TOKENS), "three", member=name)
            assert not isinstance(answer, Refusal), answer
            choice = answer["choices"][0]
            tokens = choice["token_ids"]
            expected = log_probabilities(exact, text, own, tokens)
            errors["engine"].append(choice["logprobs"]["token_logprobs"] - expected)
            errors["PEFT"].append(log_probabilities(rough, text, own, tokens) - expected)
    whole = {name: np.abs(np.concatenate(each)) for name, each in errors.items()}
    for name, each in whole.items():
        print(
            f"{name} in bfloat16: {each.mean():.4f} nats off on average, at most {each.max():.4f}"
        )
    assert whole["engine"].mean() <= TIMES * whole["PEFT"].mean()
    assert whole["engine"].max() <= TIMES * whole["PEFT"].max()
