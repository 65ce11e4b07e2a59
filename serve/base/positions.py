"""How long a text may be: the number of tokens for which the base has positions."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = 2048
"""The length that vLLM assumes for a base whose config.json does not say."""

_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Models whose first position is the padding token's id plus 1. The positions before it are never used for a token."""
_NAMES = (
    *(
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_target_positions",
    ),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of scaled rotary positions for which `max_position_embeddings` is the scaled length already."""


def longest_text(config: Mapping[str, Any]) -> int:
    """Returns the tokens of the longest text, special ones included, for which a base with this `config.json` has
    positions."""
    nested = config.get("text_config")
    own: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    ropes = _ropes(own)
    if any(_type(rope) == "longrope" for rope in ropes):
        original = own.get("original_max_position_embeddings")
        if isinstance(original, int):
            return original
    sizes = [value for name in _NAMES if isinstance(value := own.get(name), int)]
    longest = own.get("model_max_length") or min(sizes, default=UNKNOWN)
    if own.get("model_type") in _AFTER_PADDING:
        padding = own.get("pad_token_id")
        longest -= 1 + (padding if isinstance(padding, int) else 1)
    if "gemma3" not in str(own.get("model_type")):  # its size is the scaled one
        factors = [rope.get("factor") for rope in ropes if _type(rope) not in _SCALED]
        longest *= next((factor for factor in reversed(factors) if factor), 1)
    return int(longest)


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the scaling of rotary positions: one for all layers, or one for each type of layer."""
    given = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(given, Mapping):
        return []
    return [each for each in given.values() if isinstance(each, Mapping)] or [given]


def _type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))
