"""`choir convert` as a user runs it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.clients.choir_cli.conftest import Choir
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
