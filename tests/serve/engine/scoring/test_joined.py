"""Pairs as one text: where the second one begins, and which bases are told."""

from collections.abc import Sequence
from typing import Any

import pytest

from serve.engine.scoring.joined import Joined, join
from serve.labels import LabelError

BERT = {"model_type": "bert", "type_vocab_size": 2}


def tokenizer(types: Sequence[int] | None) -> Any:
    """One that makes four tokens of any pair, of these types."""
    given: dict[str, Any] = {"input_ids": [5, 6, 7, 8]}
    return lambda text, pair: given if types is None else {**given, "token_type_ids": types}


@pytest.mark.parametrize(
    ("types", "config", "second"),
    [
        ([0, 0, 1, 1], BERT, 2),
        ([0, 0, 0, 0], BERT, None),
        (None, BERT, None),
        ([0, 0, 1, 1], {"model_type": "roberta", "type_vocab_size": 1}, None),
        ([0, 0, 1, 1], {"model_type": "distilbert"}, None),
    ],
)
def test_a_base_with_types_is_told_where_the_second_text_begins(
    types: Sequence[int] | None, config: dict[str, Any], second: int | None
) -> None:
    assert join(tokenizer(types), config, "a", "b", 4) == Joined([5, 6, 7, 8], second)


@pytest.mark.parametrize(
    ("types", "config", "context", "words"),
    [
        ([0, 0, 1, 1], BERT, 3, "4 tokens long"),
        ([0, 1, 1, 0], BERT, 4, "cannot pass on"),
        ([0, 0, 1, 1], {"model_type": "roberta", "type_vocab_size": 2}, 4, "cannot pass on"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(
    types: Sequence[int], config: dict[str, Any], context: int, words: str
) -> None:
    with pytest.raises(LabelError, match=words):
        join(tokenizer(types), config, "a", "b", context)
