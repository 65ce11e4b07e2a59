"""An adapter as vLLM and PEFT load it: its folder itself, or a copy that says in their names what the folder says."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.adapter.folder import CONFIG, WEIGHTS, kind_of_config, read_config
from serve.adapter.lora.tensors import LoraModule, read_lora
from serve.adapter.wrappers import adapter_tensors
from serve.base.folder import BaseKind, BaseShapes
from serve.tensors import Tensor

_SELECTING = ("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save")
"""What a configuration says of its modules beside their names, none of which is left to say."""


@contextmanager
def plain_adapter(folder: Path, base: BaseShapes | None, kind: BaseKind | None) -> Iterator[Path]:
    """`folder` itself, or for the time of loading a copy where a loader would not find all of it, or would find more.

    The copy holds a LoRA's matrices alone, each under the name that its module has in the model that is served over
    `base`: without wrappers' names, without a head (`Head` applies it), without weights that are the base's own, and
    without what only a head of the base reads. The folder has passed `inspect_adapter`, and keeps its digest: that
    names what somebody gave, and the copy follows from it. Raises AdapterError and TensorError for one that would not
    pass."""
    config = read_config(folder)
    if kind_of_config(config) != "lora":
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
    """The same adapter with each of its modules by name, and the ranks and scalings that they have."""
    rank, alpha = config["r"], config["lora_alpha"]
    names = {each.name: each for each in modules}
    ranks = {_exactly(name): each.rank for name, each in names.items() if each.rank != rank}
    alphas = {_exactly(name): each.alpha for name, each in names.items() if each.alpha != alpha}
    return {
        **{field: value for field, value in config.items() if field not in _SELECTING},
        "target_modules": list(names),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "task_type": None,  # PEFT would look for a classifier's head
    }


def _exactly(module: str) -> str:
    """A pattern for this name, which PEFT takes for the end of one too: no other module of a base ends with it."""
    return module.replace(".", r"\.")
