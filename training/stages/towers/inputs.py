"""Turns images and texts into what a base with two towers reads, and into the vectors that it gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoImageProcessor

from serve.base.positions import longest_text
from serve.base.side_files import read_tokenizer
from serve.base.two_towers import towers_of, towers_width
from serve.images.decode import decode
from training.data.images import LIMITS, is_image

Batch = dict[str, torch.Tensor]


class TowerInputs:
    """The processor of images and the tokenizer of one base. Both towers are read as serving reads them."""

    def __init__(self, source: str, revision: str | None = None, limit: int | None = None) -> None:
        """`source` is a folder or a hub id. Texts are cut after `limit` tokens; None means the base's positions. Those
        that are filled up with padding tokens always have all positions."""
        config = AutoConfig.from_pretrained(source, revision=revision or "main").to_dict()
        towers = towers_of(config)
        assert towers is not None, "only bases with two towers are read like this"
        self._fills = towers.fills
        context = longest_text(config)
        self._limit = min(limit or context, context)
        self._context = context
        self._tokenizer = read_tokenizer(source, revision)
        self._images = AutoImageProcessor.from_pretrained(source, revision=revision or "main")

    def batch(self, cells: Sequence[str]) -> Batch:
        """Return what the base reads of images, given as data URLs, or of texts: `pixel_values` [rows, 3, height,
        width], or `input_ids` and, unless padding counts, `attention_mask` [rows, tokens].

        All cells must be of one kind."""
        if is_image(cells[0]):
            pictures = [decode(cell, LIMITS) for cell in cells]
            return {"pixel_values": self._images(pictures, return_tensors="pt")["pixel_values"]}
        return self._texts(cells)

    def vectors(
        self,
        model: Any,
        cells: Sequence[str],
        rows: int,
        advance: Callable[[int], None] = lambda _done: None,
    ) -> NDArray[np.float32]:
        """Return the vectors that `model` gives of images and texts in any order [cells, width], at most `rows` in one
        pass. `advance` counts finished cells."""
        width = towers_width(model.config.to_dict())
        found = np.empty((len(cells), width), dtype=np.float32)
        for kind in (True, False):
            own = [number for number, cell in enumerate(cells) if is_image(cell) is kind]
            for start in range(0, len(own), rows):
                chunk = own[start : start + rows]
                batch = self.batch([cells[number] for number in chunk])
                found[chunk] = tower_vectors(model, batch).numpy()
                advance(len(chunk))
        return found

    def _texts(self, texts: Sequence[str]) -> Batch:
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._context if self._fills else self._limit,
            padding="max_length" if self._fills else True,
            padding_side="right",
            return_tensors="pt",
        )
        names = ["input_ids"] if self._fills else ["input_ids", "attention_mask"]
        return {name: encoded[name] for name in names}


def tower_vectors(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the vectors [rows, width] of a batch of `TowerInputs`, before they are normalised."""
    if "pixel_values" in batch:
        found = model.get_image_features(pixel_values=batch["pixel_values"])
    else:
        read = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        found = model.get_text_features(**read)
    vectors: torch.Tensor = getattr(found, "pooler_output", found)
    return vectors
