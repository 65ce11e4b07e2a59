"""Calls with images of a small real engine over a base that writes about them, and the answers that they should get."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serve.engine.interface import EngineSettings
from serve.errors import Refusal
from serve.images.limits import ImageLimits
from tests.serve import seeing
from tests.serve.engine.calls import version
from tests.serve.engine.fused import TIE, Merge
from tests.serve.images.hostile import url_of
from tests.serve.seeing import Family, Reference
from tests.serve.towers import pictures

RANKS = {"language": 8, "tower": 4, "connector": 8, "both": 16}
MEMBERS = (*RANKS, "plain")
CHUNK = 48
PICTURES = pictures(6, seed=3)
WEIGHTS = [0.1, 0.4, 0.2, 0.25, 0.05]
CONTRAST = [1.0, 0.6, -0.3, 0.2, -0.5]
CHATS: list[tuple[str, list[Image.Image]]] = [
    ("what is in the image?", [PICTURES[0]]),
    ("what is in the image?", [PICTURES[1]]),
    ("two dogs in the snow", [PICTURES[2], PICTURES[3]]),
    ("where is my card and why has it not arrived yet", [PICTURES[4], PICTURES[0]]),
    ("where is my card?", []),
    ("A", [PICTURES[5]]),
]


def make_models(root: Path, family: Family) -> dict[str, Path]:
    """Returns the folders of a base and of adapters on each part of it."""
    base = seeing.base(family, root / "base")
    targets = seeing.TARGETS[family]
    folders = {
        name: seeing.lora(base, root / name, targets[name], seed=seed, rank=rank)
        for seed, (name, rank) in enumerate(RANKS.items(), start=1)
    }
    return {
        "base": base,
        **folders,
        "prefix": seeing.prefix(base, root / "prefix", seed=6, tokens=5),
        "prompt": seeing.prompt(base, root / "prompt", seed=7, tokens=5),
    }


def make_references(made: Mapping[str, Path]) -> dict[str, Reference]:
    base = made["base"]
    every = {name: Reference(base, folder) for name, folder in made.items() if name != "base"}
    return {**every, "plain": Reference(base, None)}


async def start(made: Mapping[str, Path]) -> Any:
    """Returns a small engine with an ensemble of all LoRAs and the base, which fill its slots."""
    from serve.engine.vllm_engine import VLLMEngine

    engine = await VLLMEngine.start(
        EngineSettings(
            model=str(made["base"]),
            kind="causal",
            adapter_slots=len(RANKS),
            host_adapters=len(RANKS) + 2,
            max_lora_rank=16,
            dtype="float32",
            arguments={
                "kv_cache_memory_bytes": 64 << 20,
                "max_num_batched_tokens": CHUNK,
                "max_num_seqs": 10,
                "max_model_len": 256,
            },
            images=ImageLimits(pixels=10_000),
        )
    )
    every = {name: name for name in RANKS}
    try:
        probes = await engine.prepare(version(made, "five", {**every, "plain": None}))
        assert all(probe.change > 0.1 for probe in probes)
    except BaseException:
        await engine.close()
        raise
    return engine


def content(text: str, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    urls = [{"type": "image_url", "image_url": {"url": url_of(each)}} for each in images]
    return [*urls, {"type": "text", "text": text}]


def chat(text: str, images: Sequence[Image.Image], **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content(text, images)}],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
        **fields,
    }


def check(
    answer: Any,
    references: Mapping[str, Reference],
    members: Sequence[str],
    case: tuple[str, list[Image.Image]],
    merge: Merge,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Every token is the reference's most likely one, or as likely within the tolerance, and its log-probability is
    the reference's."""
    assert not isinstance(answer, Refusal), answer
    choice, (text, images) = answer["choices"][0], case
    tokens = choice["token_ids"]
    each = []
    for name in members:
        reference, own = references[name], (prompts or {}).get(name)
        prompt = reference.chat(("user", text, len(images)) if own is None else ("user", own, 0))
        each.append(reference.log_probs(prompt, [] if own else images, tokens).numpy())
    fused = np.stack(
        [merge(np.stack([own[place] for own in each])) for place in range(len(tokens))]
    )
    chosen = fused[np.arange(len(tokens)), tokens]
    assert (fused.max(axis=1) - chosen).max() < TIE
    said = [token["logprob"] for token in choice["logprobs"]["content"]]
    np.testing.assert_allclose(said, chosen, atol=1e-3)
