"""LoRAs that are others by their configuration alone: each becomes a plain one, exactly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer

from serve.adapter.classifiers import STEM
from training.conversion.models import Models

MUTATING = ("pissa", "olora")
"""The starts of `init_lora_weights` with which PEFT takes the adapter's start out of the base's weights, and can
compute that start again from the base."""
_NAME = "default"


@dataclass(frozen=True)
class Pair:
    """The matrices of one module, and what their product is multiplied by."""

    a: torch.Tensor
    """[r, in]"""
    b: torch.Tensor
    """[out, r]"""
    scaling: float
    embedding: bool = False


Pairs = Mapping[str, Pair]
"""Module -> its matrices."""


def plain_pairs(model: Any) -> dict[str, Pair]:
    """Returns the matrices of a loaded LoRA. All ways of scaling are in their `scaling`."""
    return dict(_pairs(model))


def _pairs(model: Any) -> Iterator[tuple[str, Pair]]:
    for module, layer in model.base_model.model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        scaling = float(layer.scaling.get(_NAME, 0))
        if _NAME in layer.lora_A:
            a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            yield module, Pair(a.detach(), b.detach(), scaling)
        elif _NAME in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[_NAME], layer.lora_embedding_B[_NAME]
            yield module, Pair(a.detach(), b.detach(), scaling, embedding=True)


def adalora_pairs(model: Any) -> dict[str, Pair]:
    """Returns the matrices of a loaded AdaLoRA (Zhang et al. 2023), whose singular values E go into A: B (A E). Modules
    that its training has left no rank are not among them."""
    found = {}
    for module, layer in model.base_model.model.named_modules():
        if isinstance(layer, AdaLoraLayer) and len(layer.lora_E[_NAME]):
            a = (layer.lora_A[_NAME] * layer.lora_E[_NAME]).detach()
            # As AdaLoRA's layer computes it.
            scaling = float(layer.scaling[_NAME] / (layer.ranknum[_NAME] + 1e-5))
            found[module] = Pair(a, layer.lora_B[_NAME].detach(), scaling)
    return found


def mutated_pairs(models: Models, config: LoraConfig, trained: Pairs) -> dict[str, Pair]:
    """Returns a PiSSA or OLoRA as a LoRA of twice its rank over the base as it is.

    PEFT takes the start A0, B0 out of the weights: W = W' + s B0 A0, and the trained model has W' + s B A. So the
    change is s (B A - B0 A0) = s [B, -B0] [A; A0], as PEFT's own conversion computes it from a saved start. Here the
    start is computed again from the base."""
    started = get_peft_model(models.plain(), config)
    start = get_peft_model_state_dict(started)
    found = {}
    for module, own in trained.items():
        if own.embedding:  # PEFT takes nothing out of an embedding
            found[module] = own
            continue
        a0, b0 = (start[f"{STEM}{module}.lora_{side}.weight"] for side in ("A", "B"))
        a, b = torch.cat([own.a, a0]), torch.cat([own.b, -b0], dim=1)
        found[module] = Pair(a, b, own.scaling)
    return found
