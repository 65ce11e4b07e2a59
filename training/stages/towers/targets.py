"""Which modules of a base that reads images a LoRA changes, as one pattern for PEFT. A list of names such as `q_proj`
would always hit the part that reads images and the part that reads texts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from training.recipe import LoraStage, RecipeError, Targets
from training.stages.base import LAYER

_TWO_TOWERS: Mapping[Targets, tuple[str, ...]] = {
    "vision": ("vision_model.", "visual_projection"),
    "text": ("text_model.", "text_projection"),
}
_PARTS: Mapping[str, Mapping[Targets, tuple[str, ...]]] = {
    "clip": _TWO_TOWERS,
    "siglip": _TWO_TOWERS,
    "idefics3": {
        "vision": ("model.vision_model.",),
        "connector": ("model.connector.",),
        "language": ("model.text_model.",),
    },
    "llava": {
        "vision": ("model.vision_tower.",),
        "connector": ("model.multi_modal_projector.",),
        "language": ("model.language_model.",),
    },
}
"""By `model_type`: each part's names, as transformers has them."""
_ALL: tuple[Targets, ...] = ("both", "all")
_UNSERVED = "vision_model.head.attention."
"""The attention inside SigLIP's pooling head, in which no engine puts a LoRA."""


def part_pattern(
    model: Any, recipe: LoraStage, targets: Targets | Sequence[Targets], member: str
) -> str:
    """Return the pattern that matches exactly the linear modules of the parts `targets` that the recipe asks for.
    Raises RecipeError if the base has no such part, or there are none."""
    prefixes = tuple(
        prefix for names in _chosen(model, targets, member).values() for prefix in names
    )
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(prefixes)
        and not name.startswith(_UNSERVED)
        and _asked(name, recipe)
    ]
    if not names:
        raise RecipeError(
            f"member {member!r}: no linear module of the targets {targets!r} is among the target_modules "
            f"{recipe.target_modules!r}"
        )
    if recipe.layers is None:
        # One alternative for all layers, so that the pattern stays short.
        numbers = r"\.\d+\."
        names = [LAYER.sub(lambda match: _numbered(match, "#"), name) for name in names]
        written = [re.escape(name).replace(r"\.\#\.", numbers) for name in dict.fromkeys(names)]
    else:
        written = list(map(re.escape, names))
    return "|".join(written)


def part_depth(model: Any, targets: Targets | Sequence[Targets], member: str) -> int:
    """Return how many layers the deepest part has that the LoRA changes. Raises RecipeError if the base has no such
    part."""
    prefixes = tuple(
        prefix for names in _chosen(model, targets, member).values() for prefix in names
    )
    numbers = [
        int(match[1])
        for name, _ in model.named_modules()
        if name.startswith(prefixes) and (match := LAYER.search(f"{name}."))
    ]
    return max(numbers, default=-1) + 1


def _chosen(
    model: Any, targets: Targets | Sequence[Targets], member: str
) -> Mapping[Targets, tuple[str, ...]]:
    parts = _PARTS[model.config.model_type]
    asked = [targets] if isinstance(targets, str) else targets
    if unknown := next((each for each in asked if each not in (*parts, *_ALL)), None):
        raise RecipeError(
            f"member {member!r}: the base has no part {unknown!r} for targets; it has "
            f"{', '.join(parts)}"
        )
    every = any(each in _ALL for each in asked)
    return {part: names for part, names in parts.items() if every or part in asked}


def _asked(name: str, recipe: LoraStage) -> bool:
    layer = LAYER.search(name)
    if recipe.layers is not None and (layer is None or int(layer[1]) >= recipe.layers):
        return False
    if recipe.target_modules == "all-linear":
        return True
    return any(name == each or name.endswith(f".{each}") for each in recipe.target_modules)


def _numbered(match: re.Match[str], number: str) -> str:
    return match[0].replace(match[1], number)
