"""Models that write about images: a vision tower, a connector that makes tokens of what it sees, and a language model.

LoRAs on the language model are served wherever vLLM has the model. LoRAs on tower and connector need more: vLLM must
be told how many rows of a batch belong to one image. Where that number is wrong, one member's LoRA is put on another
member's image, and on the base's. So these are served only where answers were compared with transformers'."""

import re
from collections.abc import Mapping
from typing import Any

from serve.base.causal_models import MORE_THAN_TEXT

LLAVA = "ChoirLlava"
"""The model of `serve/engine/vllm_hooks/llava.py`."""

_SERVED_AS: Mapping[str, str] = {"LlavaForConditionalGeneration": LLAVA}
"""Architecture -> the model of Choir's in place of vLLM's."""
_LORA_ON_IMAGES: Mapping[str, tuple[str, ...]] = {
    "Idefics3ForConditionalGeneration": ("idefics3_vision", "idefics3"),
    "LlavaForConditionalGeneration": ("clip_vision_model", "siglip_vision_model"),
}
"""Architecture -> the kinds of towers (`model_type`) of which the rows of an image are known."""

_IN_TOWER = re.compile(
    r"\bvision_tower\.(?:vision_model\.)?(?:encoder\.layers\.(?P<layer>\d+)|head)\."
)
_LAYER = -2
"""The layer of the tower that a LLaVA reads where its `config.json` does not say, as transformers takes it."""
_LAYERS, _LAYERS_OF_DEFAULT = 12, 24
"""How many layers the tower has, where its part of the `config.json` does not say, and where there is no such part."""

IMAGES_AT_ONCE = 8
"""Images in one prompt, unless the operator allows more. A processor enlarges the smallest one to many megabytes."""


def reads_more_than_text(config: Mapping[str, Any]) -> bool:
    """Returns whether a base with this `config.json` writes, and reads images or sounds."""
    return _architecture(config) in MORE_THAN_TEXT


def reads_images(config: Mapping[str, Any]) -> bool:
    """Returns whether a base with this `config.json` writes about images."""
    return reads_more_than_text(config) and isinstance(config.get("vision_config"), Mapping)


def lora_on_images(config: Mapping[str, Any]) -> bool:
    """Returns whether LoRAs on what reads images are served over a base with this `config.json`."""
    towers = _LORA_ON_IMAGES.get(_architecture(config), ())
    vision = config.get("vision_config")
    said = vision.get("model_type") if isinstance(vision, Mapping) else None
    return bool(towers) and said in (None, *towers)


def is_read(config: Mapping[str, Any], module: str) -> bool:
    """Returns whether what a module computes reaches an answer of a base with this `config.json`.

    A LLaVA takes an image from a layer of its tower that may not be the last one (`vision_feature_layer`). The layers
    behind it, and the head that pools an image, are in its weights and are never asked; vLLM has no such modules."""
    default = _LAYER if _architecture(config) in _SERVED_AS else None
    layer, inside = config.get("vision_feature_layer", default), _IN_TOWER.search(module)
    if layer is None or inside is None:
        return True
    layers = layer if isinstance(layer, list) else [layer]
    read = max(each if each >= 0 else _tower_layers(config) + 1 + each for each in layers)
    return inside["layer"] is not None and int(inside["layer"]) < read


def _tower_layers(config: Mapping[str, Any]) -> int:
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return _LAYERS_OF_DEFAULT
    found: int = vision.get("num_hidden_layers", _LAYERS)
    return found


def vision_language_model(config: Mapping[str, Any]) -> str | None:
    """Returns the model that must stand in for vLLM's of a base with this `config.json`; None if vLLM's serves."""
    return _SERVED_AS.get(_architecture(config))


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
