"""How long a text may be, decided before it is read.

Reading a text into tokens takes time and memory in proportion to it, whether or not it fits the model. So what cannot
fit is told by its length alone, and what is still doubtful is read in slices until it is clear."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from serve.labels import LabelError

WIDEST = 128
"""Characters that a token is taken to hold at least, where the vocabulary has no longer one. Some tokenizers read a run
of spaces, or a word that they do not know, as one token however long it is; nothing that means something is so long."""

SLICE = 1 << 16
"""Characters that are read at once while it is doubtful whether a text fits."""
USUAL = 8
"""Characters a token, up to which a text is read whole: reading it takes no longer than reading one that fits."""
SLACK = 2
"""A text read in slices may have more tokens than read whole, since a slice ends inside a token. This many times the
context it never has for that reason alone."""
TOGETHER = 64
"""Texts that are read in one go at most."""


class TextLimit:
    """Which texts a model with a context of so many tokens can read."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        """`tokenizer`: a Hugging Face one."""
        self._tokenizer = tokenizer
        self._context = context
        longest = max(map(len, tokenizer.get_vocab()), default=WIDEST)
        self.characters = context * max(WIDEST, longest)
        """No text of more characters can fit."""

    def too_long(self, characters: int) -> str | None:
        """Why a text of so many characters cannot fit, in a sentence; None if it may."""
        if characters <= self.characters:
            return None
        return (
            f"A text is {characters:,} characters long, and the model's context of {self._context:,} tokens holds "
            f"{self.characters:,} at most: shorten the text."
        )

    def too_many_tokens(self, tokens: int) -> str | None:
        """Why so many tokens cannot fit, in a sentence; None if they may."""
        if tokens <= self._context:
            return None
        return f"A prompt is at least {tokens:,} tokens long, and the model's context is {self._context:,}: shorten it."

    def check(self, texts: Iterable[str]) -> None:
        """Raises LabelError if one of the texts cannot fit, without reading any."""
        reason = self.too_long(max(map(len, texts), default=0))
        if reason is not None:
            raise LabelError(reason)

    def doubtful(self, text: str) -> bool:
        """Whether the text is so long that it hardly fits."""
        return len(text) > USUAL * self._context

    def check_doubtful(self, text: str) -> None:
        """Raises LabelError if the text, whose length alone does not tell, cannot fit. Reads no more of it than a few
        times what fits, and nothing of a text that is not doubtful."""
        if not self.doubtful(text):
            return
        tokens = 0
        for part in _slices(text):
            tokens += len(self._tokenizer(part, add_special_tokens=False)["input_ids"])
            if tokens > SLACK * self._context:
                raise LabelError(
                    f"A text has {len(text):,} characters, and those are more than the {self._context:,} tokens of the "
                    "model's context: shorten the text."
                )


def few_at_a_time(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in parts that are read in one go: other requests read theirs in between."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= SLICE or number - start + 1 == TOGETHER:
            yield texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield texts[start:]


def _slices(text: str) -> Iterator[str]:
    """The text in slices, each of which ends before a space if there is one."""
    start = 0
    while start < len(text):
        end = start + SLICE
        if end < len(text):
            space = text.rfind(" ", start + 1, end)
            end = end if space < 0 else space
        yield text[start:end]
        start = end
