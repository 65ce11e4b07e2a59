"""How an engine reads the names of an adapter's tensors, against PEFT."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from serve.engine.interface import PrepareError
from tests.serve import tiny
from tests.serve.engine.calls import ask, version

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

PROMPT = "where is my card"
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True}
BARE = ("base_model.model.model.layers.0.", "base_model.model.layers.0.")


def renamed(source: Path, target: Path, rename: Callable[[str], str]) -> Path:
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file)
    return target


def with_embeddings(base: Path, folder: Path) -> Path:
    """LoRA on both embeddings as PEFT saves it: with the base's own beside it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["embed_tokens", "lm_head", "v_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


async def test_wrapped_names_and_embeddings_answer_as_peft(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    wrapped = renamed(
        models["a"], tmp_path / "wrapped", lambda name: name.replace(".layers", "._orig_mod.layers")
    )
    config = json.loads((wrapped / "adapter_config.json").read_text())
    (wrapped / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    embeds = with_embeddings(models["base"], tmp_path / "embeds")
    folders = {**models, "wrapped": wrapped, "embeds": embeds}
    for name, reference in {"wrapped": models["a"], "embeds": embeds}.items():
        each = version(folders, name, {"a": name})
        await engine.prepare(each)
        try:
            body = {**GREEDY, "max_tokens": 12, "return_token_ids": True}
            answer = await ask(engine, body, name)
            right = tiny.Reference(models["base"], reference).greedy(PROMPT, 12)
            assert answer["choices"][0]["token_ids"] == right
        finally:
            await engine.release(each.key)


async def test_half_an_adapter_is_refused_with_the_message_of_the_admission(
    engine: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    half = renamed(models["a"], tmp_path / "half", lambda name: name.replace(*BARE))
    with pytest.raises(PrepareError, match=r"no module 'layers\.0\..*; it has 'model\.layers\.0\."):
        await engine.prepare(version({**models, "half": half}, "half", {"a": "half"}))
    assert "half@1" not in engine.state().versions


async def test_modules_that_vllm_ignores_are_refused_even_for_an_unknown_base(
    engine: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = renamed(models["a"], tmp_path / "half", lambda name: name.replace(*BARE))
    before = len(engine.state().adapters)
    monkeypatch.setattr(engine._adapters, "_folder", None)
    monkeypatch.setattr(engine._adapters, "_base", None)
    with pytest.raises(PrepareError, match=r"vLLM's model .* no module 'layers\.0\."):
        await engine.prepare(version({**models, "half": half}, "half", {"a": "half"}))
    assert len(engine.state().adapters) == before
