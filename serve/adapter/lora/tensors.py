"""Checks a LoRA tensor by tensor."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serve.adapter.classifiers import is_part
from serve.adapter.folder import CONFIG, WEIGHTS, AdapterError
from serve.adapter.lora.embeddings import LAYERS, unserved_embedding
from serve.adapter.lora.modules import Modules
from serve.adapter.lora.targets import Targets, rank_and_alpha
from serve.base.folder import BaseKind, BaseShapes
from serve.tensors import Tensor, TensorFile

_TENSOR = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))$"
)
_WHOLE = re.compile(r"^base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\.weight$")
Side = Literal["A", "B"]


@dataclass(frozen=True)
class LoraModule:
    """One module of the base, and the pair of matrices that changes it."""

    given: str
    """Its name in the adapter."""
    name: str
    """Its name in the model that is served."""
    rank: int
    alpha: float
    pair: Mapping[str, Tensor]
    """`A` and `B`."""
    embedding: bool
    """Whether it is an embedding, in which tokens are looked up. A and B are then transposed."""
    read: bool
    """Whether it reaches an answer. A module that only a head of the base reads does not."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields both matrices under PEFT's names in the model that is served."""
        for side, tensor in self.pair.items():
            end = f"embedding_{side}" if self.embedding else f"{side}.weight"
            yield f"base_model.model.{self.name}.lora_{end}", tensor


def read_lora(
    file: TensorFile, config: dict[str, Any], base: BaseShapes | None, kind: BaseKind | None
) -> tuple[LoraModule, ...]:
    """Returns what a LoRA with a checked `config` changes, each module under its name in the model that is served.

    Every tensor must belong to a pair on a module of the base that the configuration names, or be a weight of the base,
    which PEFT stores beside LoRA on embeddings. Raises AdapterError for the first tensor that is neither."""
    modules = None if base is None else Modules(base, kind, _trained_as(config))
    targets = Targets(config, None if base is None else base.config.get("model_type"))
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for name, tensor in file.tensors.items():
        if is_part(name):
            continue
        if (match := _TENSOR.match(name)) is None:
            _whole_module(name)
            continue
        if len(tensor.shape) != 2:
            raise AdapterError(
                f"The tensor {name!r} has {len(tensor.shape)} dimensions; expected 2."
            )
        key = match["module"], match["embedding"] is not None
        pairs.setdefault(key, {})[match["linear"] or match["embedding"]] = tensor
    if not pairs:
        raise AdapterError(f"{WEIGHTS} holds no tensors of a LoRA.")
    names = _served_names([module for module, _ in pairs], modules)
    found = []
    for (given, embedding), pair in pairs.items():
        if not targets.include(given):
            raise AdapterError(
                f"{CONFIG} does not name the module {given!r} (target_modules and what goes with it), so that PEFT "
                "would not load its tensors."
            )
        rank, alpha = rank_and_alpha(config, given)
        read = modules is None or modules.is_read(names[given])
        found.append(LoraModule(given, names[given], rank, alpha, pair, embedding, read))
    if not any(module.read for module in found):
        raise AdapterError(
            f"It changes {found[0].name!r} alone, and no answer depends on what that computes."
        )
    return tuple(found)


def check_tensors(
    file: TensorFile, config: dict[str, Any], base: BaseShapes | None, kind: BaseKind | None
) -> tuple[str, ...]:
    """Returns the modules that the adapter changes. Raises AdapterError and TensorError unless each has a sound pair of
    matrices."""
    found = read_lora(file, config, base, kind)
    modules = None if base is None else Modules(base, kind, _trained_as(config))
    for module in found:
        _check_pair(module)
        if base is not None and modules is not None:
            turned = module.embedding or bool(config.get("fan_in_fan_out"))
            _check_fit(module, modules.shape(module.name), turned=turned)
            unserved = unserved_embedding(base.config, module.name, embedding=module.embedding)
            if module.read and unserved is not None:
                raise AdapterError(unserved)
    for name in file.tensors:
        file.check_finite(name)
        if base is not None and modules is not None and not (is_part(name) or _TENSOR.match(name)):
            _check_whole(file, name, base, modules)
    return tuple(module.name for module in found)


def _trained_as(config: dict[str, Any]) -> str | None:
    """Returns transformers' class of the model that was trained, which PEFT notes unless the task says it."""
    noted = config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, dict) else None
    return name if isinstance(name, str) else None


def _served_names(given: list[str], modules: Modules | None) -> dict[str, str]:
    """Returns each module's name in the model that is served."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    unknown = []
    for module in given:
        name = module if modules is None else modules.name(module)
        if name is None:
            unknown.append(module)
            continue
        if name in taken:
            raise AdapterError(
                f"{taken[name]!r} and {module!r} are one module of the base, {name!r}."
            )
        names[module], taken[name] = name, module
    if not unknown:
        return names
    assert modules is not None, "without a base every name is taken"
    near = modules.near(unknown[0])
    if near is not None:
        raise AdapterError(
            f"The base has no module {unknown[0]!r}; it has {near!r}. The adapter was trained on the model without its "
            "head, or inside another one; rename its tensors, which begin with 'base_model.model.' and the module's "
            "name."
        )
    if not names:
        raise AdapterError(
            f"None of its {len(given)} modules ({unknown[0]}, ...) is in the base: it was "
            "trained on another base."
        )
    raise AdapterError(
        f"The base has no module {unknown[0]!r}: the adapter was trained on another base."
    )


def _whole_module(name: str) -> str:
    """Returns the module that a tensor is the weight of, if PEFT may store it. Raises AdapterError if not."""
    match = _WHOLE.match(name)
    if match is not None and match["module"].rpartition(".")[2] in LAYERS:
        return match["module"]
    raise AdapterError(f"The tensor {name!r} is not one of a LoRA as PEFT names them.")


def _check_whole(file: TensorFile, name: str, base: BaseShapes, modules: Modules) -> None:
    """Raises AdapterError unless a whole weight in the adapter equals the base's.

    PEFT stores the base's embeddings beside a LoRA on them, and changed ones if the vocabulary was resized. PEFT loads
    what is stored; vLLM does not."""
    module = _whole_module(name)
    served = modules.name(module)
    weight = None if served is None else modules.weight(served)
    if weight is None:
        raise AdapterError(f"The base has no module {module!r}, which the tensor {name!r} is of.")
    given, own = file.tensors[name].shape, base.weights[weight]
    if given != own:
        raise AdapterError(
            f"It brings a whole {module!r} of {list(given)}, and the base's is {list(own)}: it was trained on another "
            "base, or with a resized vocabulary; train it on the base as it is, or save the resized base and pack that."
        )
    if not file.has_values_of(name, base.files[weight], weight):
        raise AdapterError(
            f"It brings a whole {module!r} with other values than the base's, which is not served; train LoRA alone "
            "on the base that is served, or save that base with these values and pack it."
        )


def _check_pair(module: LoraModule) -> None:
    for side in "AB":
        if side not in module.pair:
            raise AdapterError(
                f"The module {module.given!r} has no lora_{side}; a LoRA needs both matrices."
            )
    a, b = (module.pair[side].shape for side in "AB")
    if a[0] != b[1]:
        raise AdapterError(
            f"The matrices of {module.given!r} do not fit each other: lora_A is {list(a)} and "
            f"lora_B {list(b)}, "
            "where the first size of A and the second of B are the rank."
        )
    if a[0] != module.rank:
        raise AdapterError(
            f"The module {module.given!r} has rank {a[0]}, but {CONFIG} says {module.rank}."
        )


def _check_fit(module: LoraModule, weight: tuple[int, ...], *, turned: bool) -> None:
    """`turned`: the base stores this weight as [in, out], as embeddings and Conv1D layers do."""
    if len(weight) != 2:
        raise AdapterError(
            f"The base's {module.name!r} is not a linear layer: its weight is {list(weight)}."
        )
    expected = weight if turned else weight[::-1]
    given = (module.pair["A"].shape[1], module.pair["B"].shape[0])
    if given != expected:
        raise AdapterError(
            f"The adapter does not fit the base: for {module.name!r} it maps {given[0]} to {given[1]} "
            "values, "
            f"the base {expected[0]} to {expected[1]}."
        )
