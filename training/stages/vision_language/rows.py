"""Rows and batches of members over a base that writes about images. Images are decoded batch by batch, so that all of
them never lie in memory as pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from serve.labels import LabelError, encoder, label_paths
from training.data.images import parted
from training.recipe import EnsembleRecipe, RecipeError
from training.stages import causal
from training.stages.fit import IGNORED, Collate
from training.stages.vision_language.prompts import ImagePrompts


def member_features(
    rows: Dataset,
    cells: Sequence[str],
    ensemble: EnsembleRecipe,
    tokenizer: Any,
    prompts: ImagePrompts,
    limit: int,
) -> Dataset:
    """Turn rows into features: `input_ids` of prompt and answer, `labels` on the answer only, `image` (its data URL, or
    an empty text) and `length`.

    `cells` are the rows' inputs. Raises RecipeError if a row is longer than `limit` tokens, since an image cannot be
    cut, if a label cannot be scored, or if there is no end token."""
    encode = encoder(tokenizer)
    answers, ending = causal.written_answers(rows, ensemble, tokenizer)
    features = []
    for cell, answer in zip(cells, answers, strict=True):
        url, text = parted(cell)
        try:
            [path] = label_paths(encode, prompts.filled(ensemble.template, cell), [answer])
        except LabelError as error:
            raise RecipeError(f"ensemble {ensemble.name!r}, text {text!r}: {error}") from None
        answered = [*path.tokens, *ending]
        ids = [*path.context, *answered]
        if len(ids) > limit:
            raise RecipeError(
                f"ensemble {ensemble.name!r}: an image with its prompt and answer takes {len(ids)} tokens, and the "
                f"limit is {limit}; take smaller images or shorter texts, or raise data.max_tokens"
            )
        labels = [IGNORED] * len(path.context) + answered
        features.append(
            {"input_ids": ids, "labels": labels, "image": url or "", "length": len(ids)}
        )
    return Dataset.from_list(features)


def collate_for(tokenizer: Any, prompts: ImagePrompts) -> Collate:
    """Return the function that makes batches: those of texts, and what the base reads of the images."""
    of_texts = causal.collate_for(tokenizer)

    def collate(features: Sequence[Any]) -> dict[str, torch.Tensor]:
        urls = [each["image"] for each in features if each["image"]]
        return {**of_texts(features), **prompts.pixels(urls)}

    return collate
