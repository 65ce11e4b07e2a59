"""Checks prefix and prompt adapters: one tensor, with one row for each virtual token.

PEFT applies its encoder (prefix tuning's projection, P-tuning's MLP or LSTM) when it saves, so all these adapters look
alike. They hold `prompt_embeddings` of [n, hidden], or for a prefix of [n, layers * 2 * kv_heads * head_dim], which are
the keys and values of every layer.
"""

from typing import Any

from serve.adapter.folder import CONFIG, WEIGHTS, AdapterError, AdapterKind, named
from serve.base.folder import BaseShapes
from serve.base.positions import longest_text
from serve.tensors import TensorFile

TENSOR = "prompt_embeddings"


def check_soft(
    file: TensorFile, config: dict[str, Any], kind: AdapterKind, base: BaseShapes | None
) -> int:
    """Returns the number of virtual tokens. Raises AdapterError and TensorError if the tensor is unsound or does not
    fit the base."""
    count = _whole(config, "num_virtual_tokens")
    if config.get("num_transformer_submodules") not in (None, 1):
        raise AdapterError("It is for an encoder-decoder model, and such bases are not served.")
    if saved := config.get("modules_to_save"):
        raise AdapterError(f"Whole modules in an adapter ({named(saved)}) are not served.")
    if {tensor.name for tensor in file.tensors.values()} != {TENSOR}:
        raise AdapterError(
            f"{WEIGHTS} must hold {TENSOR!r} alone, its encoder applied, as PEFT's save_pretrained writes it, not "
            f"{named(sorted(file.tensors)[:4])}."
        )
    shape = file.tensors[TENSOR].shape
    widths = {CONFIG: _width_of_config(kind, config)}
    if base is not None and (width := _width_of_base(kind, base)) is not None:
        widths["the base"] = width
    for whose, width in widths.items():
        if shape != (count, width):
            what = "layers * 2 * kv_heads * head_dim" if kind == "prefix" else "hidden"
            raise AdapterError(
                f"{TENSOR!r} has the shape {list(shape)}; by {whose} it must be [{count}, {width}], which is "
                f"[virtual tokens, {what}]."
            )
    if base is not None:
        context = longest_text(base.config)
        if count + 2 > context:
            raise AdapterError(
                f"Its {count} virtual tokens leave no room in the base's context of {context}."
            )
    file.check_finite(TENSOR)
    return count


def _width_of_config(kind: AdapterKind, config: dict[str, Any]) -> int:
    width = _whole(config, "token_dim")
    return width if kind == "prompt" else width * 2 * _whole(config, "num_layers")


def _width_of_base(kind: AdapterKind, base: BaseShapes) -> int | None:
    """Returns None for a base whose config.json has its own names for its sizes. The engine knows those."""
    config = base.text_config
    layers, heads, hidden = (
        config.get(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int)):
        return hidden if kind == "prompt" and isinstance(hidden, int) else None
    if kind == "prompt":
        return hidden
    other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    if other:
        raise AdapterError(
            f"The base has layers of {named(other)}, and a prefix adapter needs full attention in all of them."
        )
    key_heads = config.get("num_key_value_heads") or heads
    return layers * 2 * int(key_heads) * int(config.get("head_dim") or hidden // heads)


def _whole(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterError(
            f"{name!r} in {CONFIG} must be a whole number of at least 1, not {value!r}."
        )
    return value
