"""Pairs of texts that a sequence classifier reads as one text, joined by the base's tokenizer as in transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.labels import LabelError

_TYPED = ("bert", "electra")
"""The families whose bases tell two texts apart by types of tokens."""


@dataclass(frozen=True)
class Joined:
    """A pair as one row of tokens."""

    tokens: Sequence[int]
    second: int | None = None
    """Where the tokens of the type 1 begin; None if the base or the tokenizer has no types."""

    def __len__(self) -> int:
        return len(self.tokens)


def join(
    tokenizer: Any, config: Mapping[str, Any], text: str, text_pair: str, context: int
) -> Joined:
    """Returns a pair as the tokenizer joins it. `config` is the base's.

    Raises LabelError if the pair is longer than the `context`, and if the tokenizer gives types that Choir cannot pass
    on to this base."""
    given = tokenizer(text, text_pair)
    tokens: list[int] = given["input_ids"]
    if len(tokens) > context:
        raise LabelError(
            f"A pair is {len(tokens)} tokens long, and the model's context is {context}: shorten its texts."
        )
    types: list[int] = given.get("token_type_ids", [])
    if 1 not in types or config.get("type_vocab_size", 1) < 2:
        return Joined(tokens)
    second = types.index(1)
    if config.get("model_type") not in _TYPED or set(types[second:]) != {1}:
        raise LabelError(
            "Over this base no pairs are read: its tokenizer tells the two texts apart by types of tokens that Choir "
            "cannot pass on."
        )
    return Joined(tokens, second)
