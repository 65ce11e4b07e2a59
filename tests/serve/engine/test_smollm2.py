"""A real language model of 135M parameters in float32: its members, alone and fused, against PEFT."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from peft import (
    PrefixTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.engine.interface import EngineSettings
from serve.errors import Refusal
from tests.serve import tiny
from tests.serve.engine.calls import ask, greedy, version
from tests.serve.engine.fused import Judge, averaged, multiplied

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1800),
]

MEMBERS = {"a": ["a"], "b": ["b"], "prefix": ["prefix"], "plain": []}
WEIGHTS = {"a": 0.4, "b": 0.3, "prefix": 0.2, "plain": 0.1}
CONTRAST = {"a": 0.8, "b": 0.5, "prefix": 0.2, "plain": -0.5}
PREFIX = (
    "You are a careful assistant. Answer in one short sentence, and name the place that you speak "
    "of at its beginning."
)
"""The prefix has this text's keys and values, as training starts one. Under random ones, PEFT's own log-probabilities
move by 1e-3 when the prefix is changed by a millionth: float32 leaves nothing to compare."""
TOKENS = 16
TEXTS = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "name[The Eagle], eatType[coffee shop], food[French]\nDescription:",
    "In 2024,",
)


def prefix(base: Path, folder: Path) -> Path:
    """Prefix tuning with the keys and values of the first 20 tokens of `PREFIX`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(base)(PREFIX, return_tensors="pt")["input_ids"][:, :20]
    with torch.no_grad():
        start = model(input_ids=ids, use_cache=True).past_key_values
    adapted = get_peft_model(
        model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    )
    initialize_kv_prefix_from_past_key_values(adapted, past_key_values=start)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {
        "base": smollm2,
        "a": tiny.lora(smollm2, root / "a", seed=1, targets=every, scale=0.05),
        "b": tiny.lora(smollm2, root / "b", seed=2, rank=16, scale=0.2),
        "prefix": prefix(smollm2, root / "prefix"),
    }


@pytest.fixture(scope="module")
def judge(models: dict[str, Path]) -> Judge:
    return Judge(
        models["base"], {name: [models[a] for a in each] for name, each in MEMBERS.items()}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: dict[str, Path]) -> AsyncIterator[Any]:
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(models["base"]),
            kind="causal",
            adapter_slots=3,
            max_lora_rank=16,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 1 << 29,
                "max_model_len": 512,
                "max_num_seqs": 8,
            },
        )
    )
    await engine.prepare(version(models, "four", MEMBERS))
    yield engine
    await engine.close()


@pytest.mark.parametrize("member", list(MEMBERS))
async def test_each_member_equals_peft(engine: Any, judge: Judge, member: str) -> None:
    for text in TEXTS:
        answer = await ask(engine, greedy(text, TOKENS), "four", member=member)
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(member, text)], averaged([1.0]))


@pytest.mark.parametrize(
    ("options", "merge"),
    [
        ({}, averaged([0.25] * 4)),
        (
            {"method": "weighted_average", "weights": WEIGHTS},
            averaged(list(WEIGHTS.values())),
        ),
        ({"method": "product", "weights": CONTRAST}, multiplied(list(CONTRAST.values()))),
    ],
    ids=["average", "weighted_average", "product"],
)
async def test_fused_at_every_token_equals_peft(
    engine: Any, judge: Judge, options: dict[str, Any], merge: Any
) -> None:
    for text in TEXTS:
        answer = await ask(engine, greedy(text, TOKENS), "four", return_members=True, **options)
        assert not isinstance(answer, Refusal), answer
        judge.check(answer["choices"][0], [(name, text) for name in MEMBERS], merge)


async def test_members_differ_from_the_base_and_from_each_other(engine: Any) -> None:
    """Adapters that changed nothing would pass above."""
    found = []
    for member in MEMBERS:
        answer = await ask(engine, greedy(TEXTS[1], TOKENS), "four", member=member)
        found.append(sum(answer["choices"][0]["logprobs"]["token_logprobs"]))
    assert np.diff(sorted(found)).min() > 0.01, found
