"""A LoRA as vLLM takes it: without the head that PEFT stored among its tensors."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from serve.adapter import WEIGHTS
from serve.adapter.folder import CONFIG
from serve.adapter.score import SCORE
from serve.tensors import TensorFile


@contextmanager
def plain_lora(folder: Path) -> Iterator[Path]:
    """`folder` itself, or for the time of loading a copy of its LoRA alone where it also holds the head `score`.

    vLLM puts such heads into models that classify; under ours, which pool, it refuses them (`Head` applies them)."""
    names = TensorFile(folder / WEIGHTS).tensors
    if not any(name in names for name in SCORE):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="choir-lora-") as scratch:
        copy = Path(scratch)
        shutil.copyfile(folder / CONFIG, copy / CONFIG)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names if name not in SCORE}
        save_file(tensors, copy / WEIGHTS)
        yield copy
