"""Finds the modules that an adapter's configuration names. PEFT loads these, and ignores the tensors of all others."""

from collections.abc import Sequence
from typing import Any

from serve.adapter.folder import CONFIG, AdapterError
from serve.adapter.lora.patterns import PatternError, matches_end, matches_whole, number_after
from serve.adapter.wrappers import WRAPPERS, unwrapped

_ALL_LINEAR = "all-linear"
_NOT_LINEAR = ("embed_tokens", "lm_head")
_DEFAULTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), ("query", "value")),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen3"),
        ("q_proj", "v_proj"),
    ),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
}
"""`model_type` -> the modules that PEFT takes if the configuration names none. Only the most used types."""


class Targets:
    """The modules that a LoRA's configuration names, by PEFT's rules."""

    def __init__(self, config: dict[str, Any], model_type: str | None) -> None:
        """`model_type` is the base's; None if it is not known. Raises AdapterError for what PEFT refuses."""
        wanted = config.get("target_modules")
        if wanted is None:
            wanted = _DEFAULTS.get(str(model_type))
            if wanted is None:
                raise AdapterError(
                    f"target_modules in {CONFIG} names no modules; write the trained ones there, as PEFT's "
                    "save_pretrained does."
                )
        if not wanted:
            raise AdapterError(
                f"target_modules in {CONFIG} is empty, and PEFT loads no such adapter; write the trained modules there."
            )
        self._wanted = _names("target_modules", wanted)
        self._excluded = _names("exclude_modules", config.get("exclude_modules") or [])
        self._layers = _layers(config)
        self._layer_patterns = _names("layers_pattern", config.get("layers_pattern") or [])
        by_pattern = isinstance(self._wanted, str)
        for field in ("layers_to_transform", "layers_pattern"):
            if by_pattern and config.get(field) is not None:
                raise AdapterError(
                    f"{field} in {CONFIG} goes with a list in target_modules, and PEFT refuses it beside a pattern."
                )
        if self._layer_patterns and config.get("layers_to_transform") is None:
            raise AdapterError(
                f"layers_pattern in {CONFIG} goes with layers_to_transform, and PEFT refuses it alone."
            )

    def include(self, module: str) -> bool:
        """Returns whether PEFT puts a LoRA on `module`. Raises AdapterError for a pattern that cannot be used."""
        try:
            if _matches(self._excluded, module):
                return False
            if self._wanted == _ALL_LINEAR:
                return module.rpartition(".")[2] not in _NOT_LINEAR
            if not _matches(self._wanted, module):
                return False
            return module in self._wanted or self._layers is None or self._in_layers(module)
        except PatternError as error:
            raise AdapterError(f"A pattern of modules in {CONFIG}: {error}.") from error

    def _in_layers(self, module: str) -> bool:
        patterns = [self._layer_patterns] if isinstance(self._layer_patterns, str) else []
        patterns = patterns or list(self._layer_patterns) or [r"[^.]*"]
        found = (number_after(pattern, module) for pattern in patterns)
        layer = next((number for number in found if number is not None), None)
        return layer is not None and layer in (self._layers or ())


def rank_and_alpha(config: dict[str, Any], module: str) -> tuple[int, float]:
    """Returns a module's rank and alpha by PEFT's rule: from the first pattern that matches the end of its name, else
    the adapter's own. Raises AdapterError for a pattern that cannot be used."""
    found = []
    for field, own in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        value = config[own]
        try:
            for pattern, special in (config.get(field) or {}).items():
                _check_unwrapped(field, pattern)
                if matches_end(pattern, module):
                    value = special
                    break
        except PatternError as error:
            raise AdapterError(f"{field} in {CONFIG}: {error}.") from error
        found.append(value)
    return int(found[0]), float(found[1])


def _matches(names: str | Sequence[str], module: str) -> bool:
    if isinstance(names, str):
        return matches_whole(names, module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _names(field: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        _check_unwrapped(field, value)
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value):
        return tuple(map(unwrapped, value))
    raise AdapterError(f"{field} in {CONFIG} must be a list of names or a pattern, not {value!r}.")


def _layers(config: dict[str, Any]) -> tuple[int, ...] | None:
    value = config.get("layers_to_transform")
    several = value if isinstance(value, list) else [value]
    if value is None or several == []:
        return None
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in several):
        raise AdapterError(f"layers_to_transform in {CONFIG} must be whole numbers, not {value!r}.")
    return tuple(several)


def _check_unwrapped(field: str, pattern: str) -> None:
    wrapper = next((each for each in WRAPPERS if each in pattern), None)
    if wrapper is not None:
        raise AdapterError(
            f"A pattern of {field} in {CONFIG} names the wrapper {wrapper!r}, which the base does not have; take it "
            "out."
        )
