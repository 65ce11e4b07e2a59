"""How long a text may be, decided before it is tokenized.

Tokenizing takes time and memory in proportion to the text, whether or not the text fits the model. So the number of
characters alone refuses what cannot fit. A text that is still doubtful is tokenized in slices until the answer is
clear."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from serve.labels import LabelError

MOST_CHARACTERS = 128
"""Characters that one token may stand for, unless the vocabulary has a longer token. Some tokenizers read a run of
spaces, or an unknown word, as one token of any length; no meaningful text has a token longer than this."""

SLICE = 1 << 16
"""Characters that are tokenized at once while a text is doubtful."""
USUAL = 8
"""A text of up to this many characters a token is tokenized whole: that costs no more than a text that fits."""
SLACK = 2
"""A text has more tokens in slices than as a whole, because a slice may end inside a token. It never has this many
times the context's tokens for that reason alone."""
TOGETHER = 64
"""The most texts that are tokenized in one call."""


class TextLimit:
    """Decides which texts fit a model."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        """`tokenizer`: a Hugging Face tokenizer. `context`: the model's context, in tokens."""
        self._tokenizer = tokenizer
        self._context = context
        longest = max(map(len, tokenizer.get_vocab()), default=MOST_CHARACTERS)
        self.characters = context * max(MOST_CHARACTERS, longest)
        """No text with more characters than this fits."""

    def too_long(self, characters: int) -> str | None:
        """Returns why a text of so many characters cannot fit, in a sentence; None if it may."""
        if characters <= self.characters:
            return None
        return (
            f"A text is {characters:,} characters long, and the model's context of {self._context:,} tokens holds "
            f"{self.characters:,} at most: shorten the text."
        )

    def too_many_tokens(self, tokens: int) -> str | None:
        """Returns why so many tokens cannot fit, in a sentence; None if they may."""
        if tokens <= self._context:
            return None
        return f"A prompt is at least {tokens:,} tokens long, and the model's context is {self._context:,}: shorten it."

    def check(self, texts: Iterable[str]) -> None:
        """Raises LabelError if one of the texts has too many characters to fit. Tokenizes nothing."""
        reason = self.too_long(max(map(len, texts), default=0))
        if reason is not None:
            raise LabelError(reason)

    def doubtful(self, text: str) -> bool:
        """Returns whether the text is so long that it probably does not fit."""
        return len(text) > USUAL * self._context

    def check_doubtful(self, text: str) -> None:
        """Raises LabelError if a doubtful text cannot fit.

        Tokenizes no more of the text than a few times the context, and nothing if the text is not doubtful."""
        if not self.doubtful(text):
            return
        tokens = 0
        for part in _slices(text):
            tokens += len(self._tokenizer(part, add_special_tokens=False)["input_ids"])
            if tokens > SLACK * self._context:
                raise LabelError(
                    f"A text of {len(text):,} characters has more tokens than the model's context of "
                    f"{self._context:,}: shorten the text."
                )


def few_at_a_time(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields the texts in parts, so that other requests can tokenize theirs between two parts."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= SLICE or number - start + 1 == TOGETHER:
            yield texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield texts[start:]


def _slices(text: str) -> Iterator[str]:
    """Yields the text in slices. A slice ends before a space if it has one."""
    start = 0
    while start < len(text):
        end = start + SLICE
        if end < len(text):
            space = text.rfind(" ", start + 1, end)
            end = end if space < 0 else space
        yield text[start:end]
        start = end
