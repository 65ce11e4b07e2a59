"""Turns texts into the tokens that members with an invocation read."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from serve.labels import INVOCATION, Encode, LabelError, LabelPath, encoder, label_paths
from serve.prompting.invocation import Invocation


class PromptReader:
    """Reads texts with the base's tokenizer. Members without an invocation need only `serve.labels`."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a Hugging Face tokenizer."""
        self._tokenizer = tokenizer
        self._known: dict[tuple[Invocation, tuple[str, ...]], list[tuple[int, ...]]] = {}
        """Invocation and labels -> the labels' tokens; a version asks for the same ones with every request."""

    @cached_property
    def _encode(self) -> Encode:
        return encoder(self._tokenizer)

    def invocation(self, tokens: Sequence[int]) -> Invocation:
        """Returns the invocation of these token ids."""
        text = self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return Invocation(tuple(tokens), text)

    def invocation_of_text(self, text: str) -> Invocation:
        """Returns the invocation that a text stands for. Raises LabelError if it has no tokens."""
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise LabelError(f"The invocation {text!r} has no tokens.")
        return self.invocation(tokens)

    def head(self, template: str, invocation: Invocation) -> str:
        """Returns a template up to the invocation at its end. Raises LabelError if it does not end in it."""
        head = cut(template, invocation)
        if head is None:
            raise LabelError(
                f"The template {template!r} must end in {INVOCATION}, or in the text from which the adapter acts, "
                f"{invocation.text!r}: before that text an activated LoRA does nothing."
            )
        return head

    def contexts(self, heads: Sequence[str], invocation: Invocation) -> list[list[int]]:
        """Returns the tokens of each text (at least one) with the invocation behind it."""
        return [[*row, *invocation.tokens] for row in self._encode(list(heads))]

    def paths(
        self, heads: Sequence[str], labels: Sequence[str], invocation: Invocation
    ) -> list[list[LabelPath]]:
        """Returns the paths [heads][labels] of label texts behind each text and the invocation.

        Raises LabelError as `label_tokens`."""
        tokens = self.label_tokens(labels, invocation)
        return [
            [LabelPath(context, each) for each in tokens]
            for context in map(tuple, self.contexts(heads, invocation))
        ]

    def label_tokens(self, labels: Sequence[str], invocation: Invocation) -> list[tuple[int, ...]]:
        """Returns the tokens of label texts behind the invocation.

        Raises LabelError if a label would be read together with the invocation's end, and as `label_paths`."""
        key = (invocation, tuple(labels))
        if key not in self._known:
            [alone] = self._encode([invocation.text])
            if tuple(alone[-len(invocation.tokens) :]) != invocation.tokens:
                raise LabelError(
                    f"The invocation's tokens {list(invocation.tokens)} are not those of its text {invocation.text!r}, "
                    "so no label text can follow it: train with the tokens of a text."
                )
            paths = label_paths(self._encode, invocation.text, labels)
            for label, path in zip(labels, paths, strict=True):
                if len(path.context) < len(alone):
                    raise LabelError(
                        f"The label text {label!r} is read together with the end of the invocation "
                        f"{invocation.text!r}: let the invocation end in another way, such as without a space."
                    )
            self._known[key] = [path.tokens for path in paths]
        return self._known[key]


def cut(text: str, invocation: Invocation) -> str | None:
    """Returns a text without the invocation, or the mark for it, at its end; None if it ends in neither."""
    for end in (INVOCATION, invocation.text):
        if end and text.endswith(end):
            return text.removesuffix(end)
    return None
