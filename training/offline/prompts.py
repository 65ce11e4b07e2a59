"""The prompts of an ensemble's members, as token ids, and the images in them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoConfig

from serve.adapter import invocation_of
from serve.base.side_files import read_tokenizer
from serve.bundle import Bundle
from serve.labels import LabelError, LabelPath, encoder, fill, label_paths
from serve.manifest import Ensemble, Member
from serve.prompting.invocation import Invocation
from serve.prompting.reader import PromptReader
from training.data.images import parted
from training.stages.vision_language.family import writes_about_images
from training.stages.vision_language.prompts import ImagePrompts

Pixels = Callable[[Sequence[int]], dict[str, torch.Tensor]]
"""Returns what the base reads of the images of some texts, by the texts' numbers; nothing if they have none."""


def no_pixels(_texts: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return what the base reads of texts without images: nothing."""
    return {}


class MemberPrompts:
    """Fills an ensemble's template for each member. A text may be an image, or an image with a text beside it (see
    `training.data.images.parted`), if the base writes about images."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble) -> None:
        self._bundle = bundle
        self._ensemble = ensemble
        self.tokenizer: Any = read_tokenizer(bundle.base_source, bundle.base_revision)
        self._reader = PromptReader(self.tokenizer)

    def tokens(self, member: Member, texts: Sequence[str], room: int) -> list[list[int]]:
        """Return the token ids of a member's prompts. One longer than `room` loses its beginning; raises LabelError if
        an image is in it."""
        invocation = self._invocation(member)
        if invocation is not None:
            rows = self._reader.contexts(self._heads(invocation, texts), invocation)
        else:
            rows = encoder(self.tokenizer)([self._filled(text) for text in texts])
        for text, ids in zip(texts, rows, strict=True):
            self._check_room(text, len(ids), room)
        return [ids[-room:] for ids in rows]

    def paths(
        self, member: Member, texts: Sequence[str], labels: Sequence[str], room: int
    ) -> list[Sequence[LabelPath]]:
        """Return the paths of the label texts after each prompt [texts][labels]. A prompt whose longest label does not
        fit into `room` tokens loses its beginning. Raises LabelError if no prompt is left, or an image is in it."""
        invocation = self._invocation(member)
        if invocation is not None:
            plans = self._reader.paths(self._heads(invocation, texts), labels, invocation)
        else:
            encode = encoder(self.tokenizer)
            plans = [label_paths(encode, self._filled(text), labels) for text in texts]
        for text, plan in zip(texts, plans, strict=True):
            self._check_room(text, _longest(plan), room)
        return [_within(plan, room) for plan in plans]

    def pixels(self, texts: Sequence[str]) -> Pixels:
        """Return what reads the images of these texts, a few at a time."""
        urls = [parted(text)[0] for text in texts]
        if self._images is None or not any(urls):
            return no_pixels
        images = self._images

        def read(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
            return images.pixels([url for number in numbers if (url := urls[number])])

        return read

    @cached_property
    def _images(self) -> ImagePrompts | None:
        """What reads images; None if the base reads texts alone."""
        source, revision = self._bundle.base_source, self._bundle.base_revision
        config = AutoConfig.from_pretrained(source, revision=revision or "main").to_dict()
        return ImagePrompts(source, revision) if writes_about_images(config) else None

    def _filled(self, text: str) -> str:
        if self._images is not None:
            return self._images.filled(self._ensemble.template, text)
        return fill(self._ensemble.template, text)

    def _invocation(self, member: Member) -> Invocation | None:
        """Return from where on a member's LoRA acts; None if it acts everywhere."""
        for reference in member.adapters:
            if tokens := invocation_of(self._bundle.adapter_dir(reference)):
                return self._reader.invocation(tokens)
        return None

    def _heads(self, invocation: Invocation, texts: Sequence[str]) -> list[str]:
        """Return the prompts of texts up to an invocation. Raises LabelError if the template does not end in it."""
        head = self._reader.head(self._ensemble.template, invocation)
        if self._images is not None:
            return [self._images.filled(head, text) for text in texts]
        return [fill(head, text) for text in texts]

    def _check_room(self, text: str, length: int, room: int) -> None:
        if length > room and self._images is not None and parted(text)[0] is not None:
            raise LabelError(
                f"An image with its prompt and answer takes {length} tokens, and there is room for {room}: take a "
                "smaller image or a shorter text."
            )


def _longest(plan: Sequence[LabelPath]) -> int:
    return max(len(path.context) + len(path.tokens) for path in plan)


def _within(plan: Sequence[LabelPath], room: int) -> Sequence[LabelPath]:
    """Cut tokens off the beginning of a prompt until its longest label fits into `room` tokens. Raises LabelError if no
    prompt is left."""
    over = _longest(plan) - room
    if over <= 0:
        return plan
    if over >= min(len(path.context) for path in plan):
        raise LabelError(
            f"A label leaves no room for a prompt: the base has positions for {room} tokens."
        )
    return [LabelPath(path.context[over:], path.tokens) for path in plan]
