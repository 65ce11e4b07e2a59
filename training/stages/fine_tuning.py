"""Fine-tuning of the base's weights, all or those of its first layers, on the ensembles' tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import concatenate_datasets
from transformers import set_seed

from serve.base.positions import longest_text
from training.data.cleaning.families import families_of
from training.recipe import EnsembleRecipe, FineTuningStage, LoraStage, RecipeError
from training.stages import encoder
from training.stages.base import LAYER, Base
from training.stages.fit import FitOptions, Stage, fit, fit_rows, in_bfloat16
from training.stages.member import MemberData, encoder_rows, encoder_with_head, text_rows


def tune_base(
    recipe: FineTuningStage,
    tasks: Sequence[tuple[EnsembleRecipe, MemberData]],
    base: Base,
    seed: int,
    stage: Stage,
    target: Path,
) -> None:
    """Tune the base on the rows of all `tasks` together and write it to `target`.

    If members answer by heads, there is one task, and the head that is trained for it is not kept. Raises
    RecipeError."""
    tokenizer, model = base.tokenizer(), base.model()
    if recipe.layers is not None:
        _freeze_above(model, recipe.layers)
    context = longest_text(model.config.to_dict())
    options = FitOptions(
        recipe.epochs, recipe.batch_size, recipe.learning_rate, seed, recipe.early_stopping
    )
    set_seed(seed)
    # All tasks read the same rows, so a family has the same number in all of them.
    families = [family for _, data in tasks for family in families_of(data.rows, data.columns)]
    if not base.by_heads:
        read = [
            text_rows(ensemble, data, base, min(data.max_tokens or context, context))
            for ensemble, data in tasks
        ]
        rows = fit_rows(concatenate_datasets([each for each, _ in read]), families, options)
        fit(model, rows, read[0][1], options, stage)
    else:
        [(ensemble, data)] = tasks
        limit = min(data.max_tokens or context, context)
        # The head has the defaults of a LoRA member's head.
        with_head = encoder_with_head(model, base, ensemble, data, LoraStage())
        features, collate = encoder_rows(ensemble, data, base, limit)
        rows = fit_rows(features, families, options)
        with_head.start_informed(
            encoder.batches_of(rows.train, collate), in_bfloat16(stage.precision)
        )
        fit(with_head, rows, collate, options, stage)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@torch.no_grad()
def save_average(runs: Sequence[Base], target: Path) -> None:
    """Average the weights of several `runs` from one base and write them to `target`, in float32. At most two models
    are in memory at a time."""
    model = runs[0].model()
    for number, run in enumerate(runs[1:], start=2):
        others = dict(run.model().named_parameters())
        for name, weight in model.named_parameters():
            weight.lerp_(others[name], 1 / number)
    model.save_pretrained(target)
    runs[0].tokenizer().save_pretrained(target)


def _freeze_above(model: Any, layers: int) -> None:
    """Freeze all weights except those of the first `layers` layers. Raises RecipeError if the base has fewer."""
    numbered = {
        name: int(match[1])
        for name, _ in model.named_parameters()
        if (match := LAYER.search(name)) is not None
    }
    depth = max(numbered.values(), default=-1) + 1
    if layers > depth:
        raise RecipeError(f"base: layers is {layers}, but the base has {depth}")
    for name, weight in model.named_parameters():
        weight.requires_grad = numbered.get(name, layers) < layers
