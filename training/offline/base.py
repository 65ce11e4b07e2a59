"""Loads the base of a bundle as the reference reads it."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from serve.base.attention import attention_of
from serve.base.folder import Pooling, pooling_of
from serve.bundle import Bundle
from training.stages.vision_language.family import causal_loader


def load_base(bundle: Bundle) -> tuple[Any, Pooling]:
    """Return the base of a bundle in float32, without a head, and how it is pooled where heads read it."""
    source = {
        "pretrained_model_name_or_path": bundle.base_source,
        "revision": bundle.base_revision or "main",
    }
    config = AutoConfig.from_pretrained(**source).to_dict()
    pooling = pooling_of(config)
    plain = bundle.base_kind() == "encoder" and pooling == "mean"
    loader = AutoModel if plain else causal_loader(config)
    model: Any = loader.from_pretrained(
        **source, dtype=torch.float32, attn_implementation=attention_of(config)
    )
    return model, pooling
