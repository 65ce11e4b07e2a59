"""Gives vLLM and PEFT an adapter in a form that both load whole: its folder, or a rewritten copy."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.adapter.folder import CONFIG, LORAS, WEIGHTS, kind_of_config, read_config
from serve.adapter.lora.tensors import LoraModule, read_lora
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseKind, BaseShapes
from serve.tensors import Tensor

_SELECTING = ("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save")
"""Fields that select modules in other ways than by name. The copy names each module, so it needs none of them."""


@contextmanager
def plain_adapter(folder: Path, base: BaseShapes | None, kind: BaseKind | None) -> Iterator[Path]:
    """Yields `folder` itself, or a copy that exists while the adapter is loaded. The copy is made where a loader would
    find too little or too much in the folder.

    It holds only a LoRA's matrices, each under its module's name in the model that is served over `base`. It leaves out
    wrappers' names, the adapter's head (`Head` applies it), weights that equal the base's, and what only a head of the
    base reads. The folder must have passed `inspect_adapter`. Its digest stays the adapter's identity, because the copy
    follows from the folder and the base. Raises AdapterError and TensorError for a folder that would not pass."""
    config = read_config(folder)
    if kind_of_config(config) not in LORAS:
        yield folder
        return
    file = adapter_tensors(folder)
    modules = [each for each in read_lora(file, config, base, kind) if each.read]
    tensors = dict(pair for each in modules for pair in each.tensors())
    if {name: tensor.name for name, tensor in tensors.items()} == _as_stored(file.tensors):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="choir-lora-") as scratch:
        copy = Path(scratch)
        (copy / CONFIG).write_text(json.dumps(_plain_config(config, modules)))
        file.write(copy / WEIGHTS, tensors)
        yield copy


def _as_stored(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors.values()}


def _plain_config(config: dict[str, Any], modules: list[LoraModule]) -> dict[str, Any]:
    """Returns the configuration with each module by name, and with the ranks and scalings that they have."""
    rank, alpha = config["r"], config["lora_alpha"]
    names = {each.name: each for each in modules}
    ranks = {_exactly(name): each.rank for name, each in names.items() if each.rank != rank}
    alphas = {_exactly(name): each.alpha for name, each in names.items() if each.alpha != alpha}
    return {
        **{field: value for field, value in config.items() if field not in _SELECTING},
        "target_modules": list(names),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        # PEFT would look for a classifier's head; only as a language model does it look for an invocation.
        "task_type": "CAUSAL_LM" if kind_of_config(config) == "alora" else None,
    }


def _exactly(module: str) -> str:
    """Returns a pattern for this name. PEFT also matches names that end with it, but no other module of a base does."""
    return module.replace(".", r"\.")
