"""A LoRA on the frozen base, by PEFT."""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from training.recipe import LoraStage, RecipeError, Targets
from training.stages.base import LAYER, Base
from training.stages.towers.targets import part_depth, part_pattern


def with_lora(
    model: Any,
    recipe: LoraStage,
    base: Base,
    member: str,
    invocation: Sequence[int] | None = None,
    reads: Targets = "text",
) -> PeftModel:
    """Freeze `model` and add LoRA layers to it, which act from the token ids `invocation` on if they are given.
    `reads`: the tower of a CLIP or SigLIP that reads the rows. Raises RecipeError if the recipe does not fit the
    base."""
    default: Targets = "language" if base.writes_about_images else reads
    parts = (recipe.targets or default) if base.towers or base.writes_about_images else None
    if parts is None and recipe.targets:
        raise RecipeError(
            f"member {member!r}: targets names a part of a base that reads images, and this one reads texts alone; "
            "leave it out"
        )
    if base.towers and recipe.pooling:
        raise RecipeError(
            f"member {member!r}: a CLIP or SigLIP gives one vector of each image or text; leave out pooling"
        )
    depth = part_depth(model, parts, member) if parts else model.config.num_hidden_layers
    if recipe.layers is not None and recipe.layers > depth:
        raise RecipeError(f"member {member!r}: layers is {recipe.layers}, but the base has {depth}")
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION if base.by_heads else TaskType.CAUSAL_LM,
        r=recipe.rank,
        lora_alpha=recipe.alpha or recipe.rank,
        use_rslora=recipe.rslora,
        alora_invocation_tokens=None if invocation is None else list(invocation),
        lora_dropout=recipe.dropout,
        target_modules=part_pattern(model, recipe, parts, member)
        if parts
        else _targets(model, recipe),
        # The pattern of a part names the layers itself.
        layers_to_transform=None if recipe.layers is None or parts else list(range(recipe.layers)),
        # The mean-pooled vector does not pass the pooler: a LoRA there would never learn, and vLLM refuses it.
        exclude_modules=r".*\.?pooler\..*" if base.kind == "encoder" and not parts else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(
            f"member {member!r}: target_modules {recipe.target_modules!r} do not fit the base: {reason}"
        ) from None


def _targets(model: Any, recipe: LoraStage) -> str | list[str]:
    """Return PEFT's `target_modules`. PEFT does not accept `all-linear` for only some layers, so the names of the
    linear modules replace it there."""
    if recipe.layers is None or recipe.target_modules != "all-linear":
        return recipe.target_modules
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and LAYER.search(name)
        }
    )
