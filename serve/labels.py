"""Labels as text under a causal base: which tokens have to be scored after which context.

The rule is the bundle's contract: prompt and label are tokenised as one text, and a label's tokens begin where that
text's tokens first differ from the prompt's. So the same label may stand after a shorter context than the prompt (a
merge over the boundary), and never depends on how a label would be tokenised alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import UserError

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids, with special tokens at the start only."""


class LabelError(UserError, ValueError):
    """Labels or a prompt that cannot be scored, in words for whoever wrote them."""


@dataclass(frozen=True)
class LabelPath:
    """A label's tokens [one or more] after its context [one or more tokens]."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


def encoder(tokenizer: Any) -> Encode:
    """`tokenizer` (a Hugging Face one) as an `Encode`: what it puts at a text's end (a separator, say) is cut off."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    tail = len(full) - start - len(bare)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenizer(list(texts))["input_ids"]
        return [row[: len(row) - tail] for row in rows] if tail else rows

    return encode


def label_texts(labels: Sequence[str], verbalizers: Mapping[str, str]) -> list[str]:
    """What is scored for each label: its verbaliser, by default a space and the label."""
    return [verbalizers.get(label, f" {label}") for label in labels]


def fill(template: str, text: str, text_pair: str | None = None) -> str:
    """The prompt of one input. Only the two known fields are replaced, so that braces in a text stay as they are."""
    before, *rest = template.split("{text_pair}")
    filled = [part.replace("{text}", text) for part in (before, *rest)]
    return (text_pair or "").join(filled)


def label_paths(encode: Encode, prompt: str, labels: Sequence[str]) -> list[LabelPath]:
    """The path of each label text after `prompt`, in order.

    Trailing spaces of the prompt move to the labels, because a prompt that ends in one is not a token prefix of prompt
    and label under byte-level BPE. Raises LabelError for an empty context, for a label that adds no token, and for two
    labels with the same tokens."""
    stem = prompt.rstrip(" ")
    spaces = prompt[len(stem) :]
    base, *whole = encode([stem, *(stem + spaces + label for label in labels)])
    paths: list[LabelPath] = []
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, whole, strict=True):
        shared = next(
            (i for i, (a, b) in enumerate(zip(base, ids, strict=False)) if a != b),
            min(len(base), len(ids)),
        )
        if shared == len(ids):
            raise LabelError(f"The label text {label!r} adds no token after the prompt.")
        if shared == 0:
            raise LabelError("The prompt is empty, so there is nothing that a label could follow.")
        if tuple(ids) in seen:
            raise LabelError(f"The labels {seen[tuple(ids)]!r} and {label!r} have the same tokens.")
        seen[tuple(ids)] = label
        paths.append(LabelPath(tuple(ids[:shared]), tuple(ids[shared:])))
    return paths
