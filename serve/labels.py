"""Labels as text under a causal base: which tokens have to be scored after which context.

The rule is the bundle's contract: prompt and label are tokenised as one text, and a label's tokens begin where that
text's tokens first differ from the prompt's. So the same label may stand after a shorter context than the prompt (a
merge over the boundary), and never depends on how a label would be tokenised alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import UserError

INVOCATION = "{invocation}"
"""Stands at a template's end for the text from which a member's activated LoRA acts. Each member has its own; for the
others it stands for nothing."""

IMAGE = "{image}"
"""Stands in a template for an input's image. In a template without it, an image comes right before the text."""

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids, with special tokens at the start only."""


class LabelError(UserError, ValueError):
    """Labels or a prompt that cannot be scored. The message is for the person who wrote them."""


@dataclass(frozen=True)
class LabelPath:
    """A label's tokens [one or more] after its context [one or more tokens]."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


def encoder(tokenizer: Any) -> Encode:
    """Returns a Hugging Face `tokenizer` as an `Encode`. Tokens that it puts at a text's end, such as a separator, are
    cut off."""
    tail = tokens_behind(tokenizer)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenizer(list(texts))["input_ids"]
        return [row[: len(row) - tail] for row in rows] if tail else rows

    return encode


def tokens_behind(tokenizer: Any) -> int:
    """Returns how many special tokens `tokenizer` puts at a text's end."""
    probe = readable(tokenizer)
    bare, full = (
        tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True)
    )
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return len(full) - start - len(bare)


def readable(tokenizer: Any) -> str:
    """Returns a short text of ordinary tokens. It comes from the tokenizer's own vocabulary, since no letter is in
    every alphabet. Raises LabelError if there is none."""
    # A tokenizer may hold special tokens that its files give no role: no added token counts as text.
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in range(len(tokenizer)):
        if token in special:
            continue
        text: str = tokenizer.decode([token])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and special.isdisjoint(ids):
            return text
    raise LabelError("The base's tokenizer has no token that stands for a text.")


def label_texts(labels: Sequence[str], verbalizers: Mapping[str, str]) -> list[str]:
    """Returns the text that is scored for each label: its verbalizer, by default a space and the label."""
    return [verbalizers.get(label, f" {label}") for label in labels]


def fill(template: str, text: str, text_pair: str | None = None, image: str = "") -> str:
    """Returns the prompt of one input, without the mark for invocations. Only the known fields are replaced, so that
    braces in a text stay as they are. `image`: what stands for an image in the base's prompts, if the input has one."""
    return "".join(filled(template, text, text_pair, image))


def filled(
    template: str, text: str, text_pair: str | None = None, image: str = ""
) -> tuple[str, str]:
    """Returns the prompt of one input in two parts: up to the image and with it, and what follows. The first part is
    empty without an image."""
    whole = template.removesuffix(INVOCATION)
    if IMAGE not in whole:
        whole = whole.replace("{text}", IMAGE + "{text}", 1)
    before, _, behind = whole.partition(IMAGE)
    parts = [_without_image(part, text, text_pair) for part in (before, behind)]
    return (f"{parts[0]}{image}", parts[1]) if image else ("", "".join(parts))


def _without_image(template: str, text: str, text_pair: str | None) -> str:
    before, *rest = template.split("{text_pair}")
    filled = [part.replace("{text}", text) for part in (before, *rest)]
    return (text_pair or "").join(filled)


def completion_prompt(template: str, text: str, text_pair: str | None = None) -> str:
    """Returns the prompt of one input as a completion sends it to all members: with the mark for their invocations, if
    the template has it."""
    mark = INVOCATION if template.endswith(INVOCATION) else ""
    return fill(template, text, text_pair) + mark


NEAR = 256
"""Characters at the prompt's end that are tokenised again with each label."""
_UNMOVED = 4
"""Tokens at the start of that part which must equal the prompt's own, whatever label follows."""


def label_paths(encode: Encode, prompt: str, labels: Sequence[str]) -> list[LabelPath]:
    """Returns the path of each label text after `prompt`, in order.

    Trailing spaces of the prompt move to the labels. A prompt that ends in a space is not a token prefix of prompt and
    label under byte-level BPE. The prompt is tokenised once, and its end with each label (see `_Prompt`). Raises
    LabelError if the context is empty, a label adds no token, or two labels have the same tokens."""
    stem = prompt.rstrip(" ")
    spaces = prompt[len(stem) :]
    read = _Prompt(encode, stem, [spaces + label for label in labels])
    paths: list[LabelPath] = []
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    contexts: dict[int, tuple[int, ...]] = {}
    for label, (shared, tokens) in zip(labels, read.followed, strict=True):
        if not tokens:
            raise LabelError(f"The label text {label!r} adds no token after the prompt.")
        if shared == 0:
            raise LabelError("The prompt is empty, so there is nothing that a label could follow.")
        if (shared, tokens) in seen:
            raise LabelError(
                f"The labels {seen[shared, tokens]!r} and {label!r} have the same tokens."
            )
        seen[shared, tokens] = label
        if shared not in contexts:  # one for all labels: a long context is held once
            contexts[shared] = tuple(read.tokens[:shared])
        paths.append(LabelPath(contexts[shared], tokens))
    return paths


class _Prompt:
    """A prompt's tokens, and the tokens of some texts after it.

    A text after a prompt changes the prompt's tokens near its end only. So only the prompt's last characters are
    tokenised again with each text, not the whole prompt. Their tokens equal the prompt's own, except for the first few,
    which lack what stands before them. If a text leaves the first equal token unchanged, no tokens before it can change
    either: no merge crosses to its left, neither in the prompt nor with the text. If it does change it, prompt and text
    are tokenised as a whole."""

    def __init__(self, encode: Encode, prompt: str, texts: Sequence[str]) -> None:
        self._encode = encode
        self._prompt = prompt
        start = _near_start(prompt)
        end = prompt[start:]
        ends = [end + text for text in texts]
        if start:
            self.tokens, self._near, *rows = encode([prompt, end, *ends])
        else:
            self.tokens, *rows = encode([prompt, *ends])
            self._near = self.tokens
        common = _shared(self.tokens[::-1], self._near[::-1])
        self._before = len(self.tokens) - common
        self._lead = len(self._near) - common
        self.followed = [self._after(text, row) for text, row in zip(texts, rows, strict=True)]
        """For each text, how many of the prompt's tokens stay before it, and the tokens that follow those."""

    def _after(self, text: str, row: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        shared = _shared(self._near, row)
        if self._near is not self.tokens and shared < self._lead + _UNMOVED:
            [row] = self._encode([self._prompt + text])
            shared = _shared(self.tokens, row)
            return shared, tuple(row[shared:])
        return self._before + shared - self._lead, tuple(row[shared:])


def _near_start(text: str) -> int:
    """Returns where the part of a text begins that is tokenised with each label: at a space, if there is one nearby."""
    if len(text) <= 2 * NEAR:
        return 0
    space = text.rfind(" ", len(text) - 2 * NEAR, len(text) - NEAR)
    return len(text) - NEAR if space < 0 else space


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many tokens two rows have in common at their start."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
