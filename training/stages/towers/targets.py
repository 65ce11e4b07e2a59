"""Which modules of a CLIP or SigLIP a LoRA changes, as one pattern for PEFT. A list of names such as `q_proj` would
always hit both towers."""

import re
from typing import Any, Literal

from torch import nn

from training.recipe import LoraStage, RecipeError
from training.stages.base import LAYER

Tower = Literal["vision", "text", "both"]

_PREFIXES = {
    "vision": ("vision_model.", "visual_projection"),
    "text": ("text_model.", "text_projection"),
}
_UNSERVED = "vision_model.head.attention."
"""The attention inside SigLIP's pooling head, in which no engine puts a LoRA."""


def tower_pattern(model: Any, recipe: LoraStage, tower: Tower, member: str) -> str:
    """Return the pattern that matches exactly the linear modules of `tower` that the recipe asks for. Raises
    RecipeError if there are none."""
    towers = ("vision", "text") if tower == "both" else (tower,)
    prefixes = tuple(prefix for each in towers for prefix in _PREFIXES[each])
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
            f"member {member!r}: no linear module of the targets {tower!r} is among the target_modules "
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


def tower_depth(model: Any, tower: Tower) -> int:
    """Return how many layers the deepest tower has that the LoRA changes."""
    config = model.config
    parts = {"vision": config.vision_config, "text": config.text_config}
    chosen = parts.values() if tower == "both" else [parts[tower]]
    return max(int(part.num_hidden_layers) for part in chosen)


def _asked(name: str, recipe: LoraStage) -> bool:
    layer = LAYER.search(name)
    if recipe.layers is not None and (layer is None or int(layer[1]) >= recipe.layers):
        return False
    if recipe.target_modules == "all-linear":
        return True
    return any(name == each or name.endswith(f".{each}") for each in recipe.target_modules)


def _numbered(match: re.Match[str], number: str) -> str:
    return match[0].replace(match[1], number)
