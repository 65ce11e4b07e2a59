"""Writes plain LoRAs, as PEFT saves them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from serve.adapter.classifiers import PARTS, STEM
from serve.adapter.folder import CONFIG, WEIGHTS
from serve.adapter.lora.tensors import LoraModule, read_lora
from serve.tensors import TensorFile
from training.conversion.loras import Pairs
from training.conversion.weights import Tensors

_HEADS = ("classifier", "score")
"""What PEFT lists in `modules_to_save` for every sequence classifier."""


def write_lora(draft: Path, pairs: Pairs, head: Tensors, config: Mapping[str, Any]) -> None:
    """Write a plain LoRA: each module by its name, with its rank, and with its scaling in B."""
    tensors = dict(head)
    for module, pair in pairs.items():
        a, b = ("embedding_A", "embedding_B") if pair.embedding else ("A.weight", "B.weight")
        tensors[f"{STEM}{module}.lora_{a}"] = pair.a.contiguous()
        tensors[f"{STEM}{module}.lora_{b}"] = (pair.b * pair.scaling).contiguous()
    rank = max(len(pair.a) for pair in pairs.values())
    others = _patterns({module: len(pair.a) for module, pair in pairs.items()}, rank)
    written = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else config.get("task_type"),
        "base_model_name_or_path": config.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(pairs),
        "modules_to_save": sorted({*_HEADS, *_parts(head)}) if head else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    save_file(
        {name: value.float().clone() for name, value in tensors.items()},
        draft / WEIGHTS,
        metadata={"format": "pt"},
    )
    (draft / CONFIG).write_text(json.dumps(written, indent=2))


def copy_plainly_scaled(given: Path, config: dict[str, Any], tensors: Tensors, draft: Path) -> bool:
    """Writes the same tensors as those of the LoRA `given`, with alphas that are divided by the rank where its own were
    divided by the rank's root. Returns whether every module is scaled as before."""
    before = _modules(given, config)
    usual = config["lora_alpha"] * config["r"] ** 0.5
    alphas = {name: each.alpha * each.rank**0.5 for name, each in before.items()}
    written = {name: value for name, value in config.items() if name != "use_rslora"}
    written |= {"lora_alpha": usual, "alpha_pattern": _patterns(alphas, usual)}
    save_file(dict(tensors), draft / WEIGHTS, metadata={"format": "pt"})
    (draft / CONFIG).write_text(json.dumps(written, indent=2))
    return all(
        math.isclose(each.alpha / each.rank, before[name].alpha / before[name].rank ** 0.5)
        for name, each in _modules(draft, written).items()
    )


def _modules(adapter: Path, config: dict[str, Any]) -> dict[str, LoraModule]:
    found = read_lora(TensorFile(adapter / WEIGHTS), config, None, None)
    return {each.given: each for each in found}


def _patterns(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Returns the values that are not the usual one, as PEFT's patterns. The first pattern that matches the end of a
    module's name counts, so the longest come first: each module meets its own."""
    modules = sorted(values, key=len, reverse=True)
    return {
        module.replace(".", r"\."): values[module] for module in modules if values[module] != usual
    }


def _parts(head: Tensors) -> set[str]:
    """Returns the modules that a head's tensors belong to, as `modules_to_save` names them."""
    return {part for part in PARTS if any(name.startswith(f"{STEM}{part}.") for name in head)}
