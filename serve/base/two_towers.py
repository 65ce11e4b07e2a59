"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): one tower reads images, the other texts, and both give
vectors of one space. Heads read the vector of either."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

CLIP = "ChoirCLIP"
SIGLIP = "ChoirSiglip"
"""The models of `serve/engine/vllm_hooks/two_towers.py`."""


@dataclass(frozen=True)
class TwoTowers:
    """What differs between the two families."""

    pooling: Literal["LAST", "CLS"]
    """What vLLM calls the vector of a text: that of its last token. vLLM's SigLIP turns the tokens around first."""
    fills: bool
    """Whether a text is filled up with padding tokens, which count, to all positions: so SigLIP was trained."""
    projection: str
    """The weight [width, ...] whose rows are the values of a text's vector."""


TWO_TOWERS: Mapping[str, TwoTowers] = {
    "clip": TwoTowers("LAST", False, "text_projection.weight"),
    "siglip": TwoTowers("CLS", True, "text_model.head.weight"),
}
"""By `model_type`."""

_CLIP_WIDTH = 512
_SIGLIP_WIDTH = 768
"""What transformers takes where a `config.json` leaves it out."""


def towers_of(config: Mapping[str, Any]) -> TwoTowers | None:
    """Returns what a base with this `config.json` has of two towers; None if it reads texts alone."""
    return TWO_TOWERS.get(str(config.get("model_type")))


def unserved_towers(config: Mapping[str, Any]) -> str | None:
    """Returns why vLLM cannot run a CLIP or SigLIP with this `config.json`, as the end of a sentence; None if it can.

    vLLM keeps what both towers give in one table of vectors, so they must be equally wide, and no narrower than a
    text's tokens."""
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    if config.get("model_type") == "clip":
        width, inner = clip_width(config), text.get("hidden_size", _CLIP_WIDTH)
    else:
        inner = text.get("hidden_size", _SIGLIP_WIDTH)
        width = text.get("projection_size", inner)
        if vision.get("vision_use_head") is False:
            return "without the head that pools an image (vision_use_head)"
        if vision.get("hidden_size", _SIGLIP_WIDTH) != width:
            return "with vectors of images and texts that differ in width"
    if inner > width:
        return f"with vectors of {width} values that are narrower than its text layers ({inner})"
    return None


def clip_width(config: Mapping[str, Any]) -> int:
    """Returns how many values the vectors of a CLIP have."""
    width: int = config.get("projection_dim", _CLIP_WIDTH)
    return width


def towers_width(config: Mapping[str, Any]) -> int:
    """Returns how many values the vectors of a CLIP or SigLIP have."""
    if config.get("model_type") == "clip":
        return clip_width(config)
    text = _part(config, "text_config")
    width: int = text.get("projection_size") or text.get("hidden_size", _SIGLIP_WIDTH)
    return width


def tower_of(model_class: str) -> str | None:
    """Returns the tower that a class of transformers is alone, by its name in the whole model; None if it is another
    class. `CLIPVisionModel` names its layers `encoder.layers...`, and `CLIPTextModel` too."""
    for tower, part in (("vision_model", "Vision"), ("text_model", "Text")):
        if part in model_class:
            return tower
    return None


def vllm_overrides(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what vLLM must be told of a base's `config.json`: it looks for a CLIP's width beside the text layers,
    where many published ones have another number."""
    if config.get("model_type") != "clip":
        return {}
    return {"text_config": {"projection_dim": clip_width(config)}}


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}
