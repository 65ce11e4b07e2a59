"""Checks what only an activated LoRA has: an invocation. Everything that PEFT passes over in silence is refused."""

from pathlib import Path
from typing import Any

from serve.adapter.folder import CONFIG, AdapterError, kind_of_config, read_config
from serve.base.folder import BaseKind, BaseShapes
from serve.tensors import TensorFile

_FIELD = "alora_invocation_tokens"
_EMBEDDING = "lora_embedding_"


def invocation_of(folder: Path) -> tuple[int, ...]:
    """Returns the token ids of an adapter's invocation; none unless it is an activated LoRA. Raises AdapterError."""
    config = read_config(folder)
    return _tokens(config) if kind_of_config(config) == "alora" else ()


def check_invocation(
    config: dict[str, Any], tensors: TensorFile, base: BaseShapes | None, base_kind: BaseKind | None
) -> None:
    """Checks that a LoRA acts from its invocation on, if it has one. Raises AdapterError if PEFT would answer as the
    base, or would change tokens before the invocation."""
    if kind_of_config(config) != "alora":
        return
    tokens = _tokens(config)
    if base_kind == "encoder":
        raise AdapterError(
            "It is an activated LoRA, and a base that heads read is never invoked: train a plain LoRA."
        )
    if config.get("task_type") != "CAUSAL_LM":
        raise AdapterError(
            f"An activated LoRA needs the task_type CAUSAL_LM in {CONFIG}, not {config.get('task_type')!r}: with "
            "another one PEFT never looks for the invocation and answers as the base."
        )
    vocabulary = base.text_config.get("vocab_size") if base is not None else None
    if isinstance(vocabulary, int) and max(tokens) >= vocabulary:
        raise AdapterError(
            f"{_FIELD} in {CONFIG} has the token {max(tokens)}, and the base has {vocabulary} tokens."
        )
    if any(_EMBEDDING in name for name in tensors.tensors):
        raise AdapterError(
            "An activated LoRA on token embeddings would act before its invocation too, where the base is shared: "
            "train it without embed_tokens."
        )


def _tokens(config: dict[str, Any]) -> tuple[int, ...]:
    tokens = config.get(_FIELD)
    sound = isinstance(tokens, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in tokens
    )
    if not sound:
        raise AdapterError(f"{_FIELD} in {CONFIG} must be a list of token ids, not {tokens!r}.")
    assert isinstance(tokens, list)
    return tuple(tokens)
