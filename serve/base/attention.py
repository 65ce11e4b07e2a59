"""The attention that transformers must compute to answer as vLLM does."""

from collections.abc import Mapping
from typing import Any, Literal


def attention_of(config: Mapping[str, Any]) -> Literal["eager"] | None:
    """Returns the `attn_implementation` for a base with this config; None for transformers' own choice.

    Gemma 2 caps its attention's logits (`attn_logit_softcapping`). Of transformers' kinds of attention, the default one
    leaves the cap out; vLLM and "eager" apply it."""
    nested = config.get("text_config")
    own: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    return "eager" if own.get("attn_logit_softcapping") else None
