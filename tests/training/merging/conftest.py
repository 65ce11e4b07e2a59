"""A bundle of three LoRAs that nobody trained, each with other ranks, layers, scaling and head."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import AutoModel

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble, FusionSpec, Member

LABELS = ["card", "top_up", "transfer"]
KINDS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "b": {"r": 2, "lora_alpha": 6, "use_rslora": True, "target_modules": ["query", "dense"]},
    "c": {"r": 4, "lora_alpha": 4, "target_modules": ["query"], "layers_to_transform": [1]},
}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def write_lora(
    base: Path, folder: Path, seed: int, *, normalize: bool = True, **options: Any
) -> Path:
    """A LoRA on `base` with random matrices and a random head."""
    torch.manual_seed(seed)
    excluded = r".*\.?pooler\..*" if "dense" in options["target_modules"] else None
    config = LoraConfig(init_lora_weights=False, exclude_modules=excluded, **options)
    model = get_peft_model(AutoModel.from_pretrained(base), config)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    random = np.random.default_rng(seed)
    head = {
        "weight": random.normal(size=(len(LABELS), 32)).astype(np.float32),
        "bias": random.normal(size=len(LABELS)).astype(np.float32),
    }
    metadata = {"normalize": "true" if normalize else "false"}
    save_file(head, folder / "head.safetensors", metadata=metadata)
    return folder


def write_bundle(folder: Path, base: Path, adapters: dict[str, Path]) -> Bundle:
    """A bundle whose ensemble `topics` has these adapters as members."""
    bundle = Bundle.create(folder, BaseSpec(path=str(base)))
    members = [
        Member(name=name, weight=WEIGHTS.get(name), adapters=[bundle.add_adapter(name, source)])
        for name, source in adapters.items()
    ]
    bundle.write_ensemble(
        Ensemble(
            format=1,
            name="topics",
            version=1,
            task="classification",
            members=members,
            fusion=FusionSpec(method="weighted_average"),
            labels=LABELS,
        )
    )
    return bundle


@pytest.fixture(scope="session")
def lora_bundle(tmp_path_factory: pytest.TempPathFactory, encoder_base: Path) -> Bundle:
    folder = tmp_path_factory.mktemp("merging")
    adapters = {
        name: write_lora(encoder_base, folder / name, seed, **options)
        for seed, (name, options) in enumerate(KINDS.items())
    }
    return write_bundle(folder / "bundle", encoder_base, adapters)
