"""Activated LoRAs: what PEFT passes over in silence is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.adapter import (
    AdapterError,
    adapter_kind,
    check_together,
    inspect_adapter,
    invocation_of,
    plain_adapter,
)
from serve.base.folder import BaseShapes
from tests.serve import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_base(tmp_path_factory.mktemp("alora") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return tiny.lora(base, tmp_path / "adapter", seed=1, invocation=[70, 71])


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_it_is_a_kind_of_its_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    info = inspect_adapter(adapter, base=base, max_rank=8, base_kind="causal")
    assert (info.kind, info.rank, info.virtual_tokens) == ("alora", 8, 0)
    assert invocation_of(adapter) == (70, 71)
    plain = tiny.lora(base, tmp_path / "plain", seed=1)
    assert (adapter_kind(plain), invocation_of(plain)) == ("lora", ())
    configure(plain, alora_invocation_tokens=[])  # PEFT takes it as none
    assert adapter_kind(plain) == "lora"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"alora_invocation_tokens": "ab"}, "must be a list of token ids"),
        ({"alora_invocation_tokens": [1.5]}, "must be a list of token ids"),
        ({"alora_invocation_tokens": [True]}, "must be a list of token ids"),
        ({"alora_invocation_tokens": [-1]}, "must be a list of token ids"),
        ({"alora_invocation_tokens": [70, 100000]}, "has the token 100000, and the base has"),
        ({"task_type": None}, "needs the task_type CAUSAL_LM"),
        ({"task_type": "FEATURE_EXTRACTION"}, "needs the task_type CAUSAL_LM"),
        ({"use_dora": True}, "DoRA is not served"),
    ],
)
def test_what_peft_passes_over_is_refused(
    base: Path, adapter: Path, fields: dict[str, Any], reason: str
) -> None:
    configure(adapter, **fields)
    with pytest.raises(AdapterError, match=reason):
        inspect_adapter(adapter, base=base, max_rank=8, base_kind="causal")


def test_under_heads_and_on_embeddings_it_is_refused(base: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError, match="never invoked"):
        inspect_adapter(adapter, base=base, base_kind="encoder")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    vocabulary, hidden = BaseShapes.read(base).text_config["vocab_size"], 128
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors |= {f"{name}A": torch.ones(8, vocabulary), f"{name}B": torch.ones(hidden, 8)}
    save_file(tensors, file)
    configure(adapter, target_modules=["q_proj", "v_proj", "embed_tokens"])
    with pytest.raises(AdapterError, match="without embed_tokens"):
        inspect_adapter(adapter, base=base, base_kind="causal")


def test_virtual_tokens_beside_it_are_refused() -> None:
    check_together(["alora"])
    with pytest.raises(AdapterError, match="without the prefix adapter"):
        check_together(["alora", "prefix"])
    with pytest.raises(AdapterError, match="two LoRAs"):
        check_together(["lora", "alora"])


def test_a_plain_copy_keeps_the_invocation(base: Path, adapter: Path) -> None:
    """Compiled names make the copy needed. As another kind of task, PEFT would never look for the invocation."""
    file = adapter / "adapter_model.safetensors"
    renamed = {
        name.replace("layers.0", "layers.0._orig_mod"): value
        for name, value in load_file(file).items()
    }
    save_file(renamed, file)
    with plain_adapter(adapter, BaseShapes.read(base), "causal") as copy:
        assert copy != adapter
        assert invocation_of(copy) == (70, 71)
        assert json.loads((copy / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
