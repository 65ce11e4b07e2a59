"""Which causal bases are trained on images, and the class of transformers that loads them."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

FAMILIES = ("idefics3", "llava")
"""By `model_type`. `training/stages/towers/targets.py` knows their parts."""


def writes_about_images(config: Mapping[str, Any]) -> bool:
    """Return whether the base with this `config.json` is one of these."""
    return config.get("model_type") in FAMILIES


def causal_loader(config: Mapping[str, Any]) -> Any:
    """Return the class that loads a causal base with this `config.json`."""
    return AutoModelForImageTextToText if writes_about_images(config) else AutoModelForCausalLM
