"""Small bases and adapters as transformers and PEFT themselves write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serve.bundle import BaseSpec, Bundle

HIDDEN = 16


class AdapterFolder:
    """A folder as PEFT saved it, to be changed by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set_config(self, **fields: Any) -> None:
        file = self.path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    def tensors(self) -> dict[str, np.ndarray]:
        return load_file(self.path / "adapter_model.safetensors")

    def set_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        save_file(tensors, self.path / "adapter_model.safetensors")

    def add_head(self, labels: int = 3, width: int = HIDDEN, **metadata: str) -> None:
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(labels, width)).astype(np.float32)
        head = {"weight": weight, "bias": np.zeros(labels, dtype=np.float32)}
        save_file(head, self.path / "head.safetensors", metadata=metadata or None)


@pytest.fixture(scope="session")
def causal_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    path = tmp_path_factory.mktemp("causal") / "base"
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved without a head, as sentence encoders are, so that its weights carry no `bert.`."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    path = tmp_path_factory.mktemp("encoder") / "base"
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path, causal_base: Path) -> Bundle:
    """A bundle of a small causal base, without ensembles."""
    return Bundle.create(tmp_path / "bundle", BaseSpec(path=str(causal_base)))


@pytest.fixture
def make_soft(tmp_path: Path) -> Callable[..., AdapterFolder]:
    """`make_soft(base, kind, **config)` -> a prefix, prompt or p-tuning adapter that PEFT made and saved."""

    def make(base: Path, kind: str, **config: Any) -> AdapterFolder:
        import peft
        from transformers import AutoModelForCausalLM

        config_class = {
            "prefix": peft.PrefixTuningConfig,
            "prompt": peft.PromptTuningConfig,
            "p-tuning": peft.PromptEncoderConfig,
        }[kind]
        model = AutoModelForCausalLM.from_pretrained(base)
        given = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3} | config
        path = tmp_path / f"soft-{kind}"
        peft.get_peft_model(model, config_class(**given)).save_pretrained(path)
        return AdapterFolder(path)

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., AdapterFolder]:
    """`make_adapter(base, **lora_config)` -> a LoRA that PEFT made and saved, all values random."""

    def make(base: Path, name: str = "adapter", seed: int = 0, **lora: Any) -> AdapterFolder:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, AutoModelForCausalLM

        causal = (base.parent.name).startswith("causal")
        model = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(base)
        targets = ["q_proj", "down_proj"] if causal else ["query", "value"]
        config = LoraConfig(**({"r": 4, "target_modules": targets} | lora))
        torch.manual_seed(seed)
        peft = get_peft_model(model, config)
        for key, value in peft.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(value)
        peft.save_pretrained(tmp_path / name)
        return AdapterFolder(tmp_path / name)

    return make
