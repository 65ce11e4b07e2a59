"""Finds the head of a sequence classifier that PEFT saved: in the adapter, and what is frozen in the base.

BERT's pooler and ModernBERT's `head` are part of the published model. PEFT freezes them like the rest of it, and a LoRA
may be on them. So they are read from the base, and the LoRA is added to them. A part that is in neither had random
values which nobody has kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.adapter.classifiers import STEM, Classifier, classifier_of, is_output, is_part
from serve.adapter.folder import AdapterError
from serve.adapter.head.layers import ACTIVATIONS, HiddenLayer, LayerNorm
from serve.adapter.lora.tensors import LoraModule, read_lora
from serve.base.folder import BaseShapes, pooling_of
from serve.tensors import TensorFile

_BACKBONES = ("bert.",)
"""What a checkpoint without a head leaves out in front of a head's names."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """A tensor, and the file that holds it."""

    file: TensorFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.tensors[self.name].shape

    def floats(self) -> Floats:
        return self.file.floats(self.name)


@dataclass(frozen=True)
class PeftHead:
    """The parts of a sequence classifier's head, by module and tensor, as in `classifier.weight`."""

    classifier: Classifier
    parts: Mapping[str, Place]
    changes: Mapping[str, LoraModule]
    """Modules with a LoRA on them."""
    adapter: TensorFile
    config: Mapping[str, Any]
    """Of the adapter."""

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor; None if the head has none such."""
        place = self.parts.get(tensor)
        return None if place is None else place.shape

    def output(self) -> tuple[Floats, Floats]:
        """Returns weight [C, H] and bias [C] of the last layer."""
        weight = self._weight(self.classifier.output)
        bias = self._bias(self.classifier.output)
        return weight, np.zeros(len(weight), np.float32) if bias is None else bias

    def hidden(self) -> HiddenLayer | None:
        """Returns the layer before it, if the family's classifier has one."""
        own = self.classifier
        if own.hidden is None:
            return None
        norm = None
        if own.norm is not None:
            norm = LayerNorm(self._weight(own.norm), self._bias(own.norm), own.epsilon)
        return HiddenLayer(self._weight(own.hidden), self._bias(own.hidden), own.activation, norm)

    def _weight(self, module: str) -> Floats:
        weight = self.parts[f"{module}.weight"].floats()
        lora = self.changes.get(module)
        if lora is None:
            return weight
        a, b = (self.adapter.floats(_name(self.adapter, lora, side)) for side in ("A", "B"))
        root = bool(self.config.get("use_rslora"))
        scale = lora.alpha / (np.sqrt(lora.rank) if root else lora.rank)
        return np.asarray(weight + scale * (b @ a), np.float32)

    def _bias(self, module: str) -> Floats | None:
        place = self.parts.get(f"{module}.bias")
        return None if place is None else place.floats()


def has_peft_head(adapter: TensorFile) -> bool:
    """Returns whether PEFT saved a classifier's head among an adapter's tensors."""
    return any(map(is_output, adapter.tensors))


def find_peft_head(
    adapter: TensorFile, config: Mapping[str, Any], base: BaseShapes | None
) -> PeftHead | None:
    """Returns the head that PEFT saved in an adapter; None if it saved none. Without the `base`, it is taken for a
    causal model's `score`.

    Raises AdapterError if the head is another family's, or if a part of it is neither in the adapter nor in the
    base."""
    own = [name for name in adapter.tensors if is_part(name)]
    if not own:
        return None
    causal = base is None or pooling_of(base.config) == "last"
    if base is None and f"{STEM}score.weight" not in own:
        raise AdapterError(
            "It has a classifier's head as PEFT saves it. What that reads depends on the base, which is not on this "
            "machine; download the base first."
        )
    classifier = classifier_of({} if base is None else base.config, causal=causal)
    if classifier is None:
        raise AdapterError(
            "It has a classifier's head as PEFT saves it, and Choir does not know which vector this family's "
            "classifier reads; store the head as head.safetensors."
        )
    known = {f"{module}.{end}" for module in classifier.modules for end in ("weight", "bias")}
    given = {_in_family(name, classifier): name for name in own}
    other = next((name for key, name in given.items() if key not in known), None)
    if other is not None:
        raise AdapterError(
            f"The tensor {other!r} is not part of this base's sequence classifier, which has "
            f"{', '.join(classifier.modules)}."
        )
    parts = {key: Place(adapter, name) for key, name in given.items()}
    for key in known - parts.keys():
        if (place := _in_base(key, base)) is not None:
            parts[key] = place
    for module in classifier.modules:
        if f"{module}.weight" not in parts:
            raise AdapterError(
                f"Its head needs {module!r}, which is neither in the adapter nor in the base: its random values were "
                f"not saved. List {module.rpartition('.')[0] or module!r} in modules_to_save and train again."
            )
    if classifier.activation and classifier.activation not in ACTIVATIONS:
        raise AdapterError(
            f"Its head has the activation {classifier.activation!r}; served are {', '.join(ACTIVATIONS)}."
        )
    return PeftHead(classifier, parts, _changes(adapter, config, base, classifier), adapter, config)


def _in_family(tensor: str, classifier: Classifier) -> str:
    """Returns a tensor's name by the names of the whole classifier, whose pooler may stand behind the backbone's
    name."""
    key = tensor.removeprefix(STEM)
    for backbone in _BACKBONES:
        if f"{backbone}{key.rpartition('.')[0]}" in classifier.modules:
            return backbone + key
    return key


def _in_base(key: str, base: BaseShapes | None) -> Place | None:
    if base is None:
        return None
    names = [key, *(key.removeprefix(backbone) for backbone in _BACKBONES)]
    found = next((name for name in names if name in base.files), None)
    return None if found is None else Place(base.files[found], found)


def _changes(
    adapter: TensorFile,
    config: Mapping[str, Any],
    base: BaseShapes | None,
    classifier: Classifier,
) -> dict[str, LoraModule]:
    """Returns the LoRA on each module of the head that has one."""
    if not any(
        f"{module}.lora_" in name for module in classifier.modules for name in adapter.tensors
    ):
        return {}
    modules = read_lora(adapter, dict(config), base, "encoder")
    return {
        module: each
        for each in modules
        for module in classifier.modules
        if module in (each.given, f"bert.{each.given}")
    }


def _name(file: TensorFile, lora: LoraModule, side: str) -> str:
    """Returns the name in `file` of one of a LoRA's matrices."""
    names = {tensor.start: name for name, tensor in file.tensors.items()}
    name: str = names[lora.pair[side].start]
    return name
