"""Pools a base's vectors as its last layer gives them, without the modules that sentence-transformers stored beside it.

vLLM 0.32 reads `modules.json` and applies the `Dense` layers in it after the pooling. No setting turns that off. Heads
are trained on the pooled vector itself (`serve/base/side_files.py`)."""

from typing import Any

from vllm.model_executor.models import adapters


def install() -> None:
    """Makes vLLM find no such layers."""
    adapters.try_get_dense_modules = _none


def _none(model: Any, revision: str | None = None) -> None:
    return None
