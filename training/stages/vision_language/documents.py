"""Pretraining of a base that writes about images, on documents with an image. It predicts the text's next token."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import set_seed

from serve.base.positions import longest_text
from serve.labels import LabelError
from training.data.splits import hold_out
from training.recipe import RecipeError
from training.stages.causal import end_token
from training.stages.documents import Documents
from training.stages.fit import IGNORED, FitOptions, Stage, fit, fit_rows
from training.stages.pretraining import HELD_OUT, Pretrained, held_out_losses
from training.stages.vision_language.prompts import ImagePrompts
from training.stages.vision_language.rows import collate_for


def pretrain_on_images(
    model: Any,
    tokenizer: Any,
    prompts: ImagePrompts,
    rows: Dataset,
    image: str,
    templates: Sequence[str],
    options: FitOptions,
    stage: Stage,
) -> Pretrained:
    """Train a model in place on the documents that `templates` make of rows, and judge it on held-out documents; if all
    are of one family, on those that it was trained on.

    The row's image stands where a template names the column `image`. Its tokens have no loss. Raises RecipeError."""
    features = _features(model, tokenizer, prompts, rows, image, templates)
    families = Documents.of(rows, templates).families
    kept, held = hold_out(families, max(HELD_OUT, 1 / max(len(features), 1)), options.seed)
    train = fit_rows(features.select(kept), [families[index] for index in kept], options)
    collate = collate_for(tokenizer, prompts)
    set_seed(options.seed)
    fit(model, train, collate, options, stage)
    seen = [[token for token in labels if token != IGNORED] for labels in train.train["labels"]]
    unseen = features.select(held or kept)
    found: Pretrained = held_out_losses(model, seen, unseen, collate, causal=True)
    return found


def _features(
    model: Any,
    tokenizer: Any,
    prompts: ImagePrompts,
    rows: Dataset,
    image: str,
    templates: Sequence[str],
) -> Dataset:
    context = longest_text(model.config.to_dict())
    end = end_token(tokenizer, "pretraining")
    features = []
    for row in rows:
        for template in templates:
            try:
                text, url = prompts.document(template, row, image)
            except LabelError as error:
                raise RecipeError(f"base: {error}") from None
            ids = [*tokenizer(text)["input_ids"], end]
            if url is None:
                ids = [*ids[: context - 1], end] if len(ids) > context else ids
            elif len(ids) > context:
                raise RecipeError(
                    f"base: an image with its document takes {len(ids)} tokens, and the base has positions for "
                    f"{context}; take smaller images, shorter documents or a larger context"
                )
            labels = [IGNORED if token in prompts.tokens else token for token in ids]
            features.append(
                {"input_ids": ids, "labels": labels, "image": url or "", "length": len(ids)}
            )
    return Dataset.from_list(features)
