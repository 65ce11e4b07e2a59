"""Prompts with an image: the text that stands for the image in them, and the pixels that the base reads."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from serve.images.decode import decode
from serve.labels import LabelError, fill
from training.data.images import LIMITS, parted

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor returns of the text beside the pixels."""


class ImagePrompts:
    """Writes prompts as a base's processor would, and reads the images in them."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        """`source` is a folder or a hub id."""
        self._processor = AutoProcessor.from_pretrained(source, revision=revision or "main")
        self._mark: str = self._processor.image_token
        self._written: dict[tuple[int, int], str] = {}
        """Width and height of an image -> its text."""

    def filled(self, template: str, cell: str) -> str:
        """Return the prompt of one input: an image, a text, or both (see `parted`).

        The image's text is as many image tokens as the base reads vectors of it, with the tokens around them. An input
        without an image has nothing at its place. Raises LabelError if the input's text holds an image token."""
        url, text = parted(cell)
        self._check(text)
        return fill(template, text, image="" if url is None else self.written(url))

    def document(self, template: str, row: Mapping[str, Any], image: str) -> tuple[str, str | None]:
        """Return the text of a document, and the data URL of its image, if its template names the column `image`.
        Raises LabelError as `filled`."""
        parts = [part.format_map(row) for part in template.split(f"{{{image}}}")]
        for part in parts:
            self._check(part)
        if len(parts) == 1:
            return parts[0], None
        return self.written(row[image]).join(parts), row[image]

    def written(self, url: str) -> str:
        """Return the text of an image."""
        size = decode(url, LIMITS).size
        if size not in self._written:
            self._written[size] = self._tokens_of(Image.new("RGB", size))
        return self._written[size]

    def pixels(self, urls: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return what the base reads of images, by the names of its forward; nothing if there are no images."""
        if not urls:
            return {}
        pictures = [[decode(url, LIMITS)] for url in urls]
        read = self._processor(
            text=[self._mark] * len(urls), images=pictures, padding=True, return_tensors="pt"
        )
        return {name: tensor for name, tensor in read.items() if name not in _OF_TEXT}

    @cached_property
    def tokens(self) -> frozenset[int]:
        """The tokens of images' texts that stand for pixels, or around them. None of them is predicted."""
        tokenizer = self._processor.tokenizer
        return frozenset(tokenizer.all_special_ids) - {tokenizer.eos_token_id}

    def _tokens_of(self, image: Image.Image) -> str:
        read = self._processor(text=[self._mark], images=[[image]], add_special_tokens=False)
        text: str = self._processor.tokenizer.decode(
            list(read["input_ids"][0]),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return text

    def _check(self, text: str) -> None:
        if self._mark in text:
            raise LabelError(
                f"The text {text[:100]!r} holds {self._mark}, which stands for an image."
            )
