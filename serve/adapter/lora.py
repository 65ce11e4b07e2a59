"""What is served of LoRA, tensor by tensor."""

import re
from typing import Any

from serve.adapter.folder import CONFIG, HEAD, WEIGHTS, AdapterError, named
from serve.adapter.patterns import PatternError, matches_end
from serve.adapter.score import LISTED, SCORE
from serve.base import BaseShapes
from serve.tensors import TensorFile

RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that an engine's `max_lora_rank` may take."""
DEFAULT_RANK_LIMIT = 64

_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
_UNSERVED = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "lora_bias": "LoRA with a bias (lora_bias)",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "trainable token embeddings",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
}
_TENSOR = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))$"
)


def check_config(config: dict[str, Any], max_rank: int | None) -> int:
    """The adapter's largest rank, once the variant is one that is served. Raises AdapterError."""
    for field, feature in _UNSERVED.items():
        if config.get(field):
            raise AdapterError(
                f"{feature} is not served ({field} in {CONFIG}); train a plain LoRA."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f'Trained biases are not served; train with "bias": "none", not {config["bias"]!r}.'
        )
    saved = config.get("modules_to_save")
    if saved and not (isinstance(saved, list) and set(map(str, saved)) <= LISTED):
        raise AdapterError(
            f"Whole modules in an adapter ({named(saved)} in modules_to_save) are not served but for "
            f"the head 'score' of a causal model; an encoder's head goes to {HEAD}."
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights={init!r} changes the base's weights on loading; convert it to a "
            "plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion)."
        )
    return _check_rank(config, max_rank)


def _check_rank(config: dict[str, Any], max_rank: int | None) -> int:
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterError(
            f"rank_pattern in {CONFIG} must be an object of module patterns and ranks."
        )
    ranks = [config.get("r"), *patterns.values()]
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise AdapterError(
                f"The rank in {CONFIG} must be a whole number of at least 1, not {rank!r}."
            )
    largest: int = max(rank for rank in ranks if rank is not None)
    if max_rank is not None and largest > max_rank:
        room = next((limit for limit in RANK_LIMITS if limit >= largest), None)
        advice = (
            f"start the engine with max_lora_rank {room}"
            if room
            else f"at most {RANK_LIMITS[-1]} can be served"
        )
        raise AdapterError(
            f"Its rank {largest} is above the engine's limit of {max_rank}; {advice}."
        )
    return largest


def check_tensors(
    file: TensorFile, config: dict[str, Any], base: BaseShapes | None
) -> tuple[str, ...]:
    """The modules that the adapter changes, once each has a sound pair of matrices.

    Raises AdapterError and TensorError."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings = set()
    for name, tensor in file.tensors.items():
        if name in SCORE:
            continue
        match = _TENSOR.match(name)
        if match is None:
            hint = ""
            if ".classifier." in name:
                hint = (
                    " A 'classifier' reads what its own model pools, not the mean over the tokens: "
                    f"train a head for that and store it as {HEAD}."
                )
            raise AdapterError(
                f"The tensor {name!r} is not one of a LoRA as PEFT names them.{hint}"
            )
        module, side = match["module"], match["linear"] or match["embedding"]
        if len(tensor.shape) != 2:
            raise AdapterError(
                f"The tensor {name!r} has {len(tensor.shape)} dimensions; expected 2."
            )
        if match["embedding"]:
            embeddings.add(module)
        pairs.setdefault(module, {})[side] = tensor.shape
    if not pairs:
        raise AdapterError(f"{WEIGHTS} holds no tensors.")
    if base is not None and not any(base.find(module) for module in pairs):
        raise AdapterError(
            f"None of its {len(pairs)} modules ({next(iter(pairs))}, ...) is in the base: it was "
            "trained on another base."
        )
    for module, pair in pairs.items():
        _check_pair(module, pair, config)
        if base is not None:
            turned = module in embeddings or bool(config.get("fan_in_fan_out"))
            _check_fit(module, pair, base.find(module), turned=turned)
    for name in file.tensors:
        file.check_finite(name)
    return tuple(pairs)


def _check_pair(module: str, pair: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    for side in "AB":
        if side not in pair:
            raise AdapterError(
                f"The module {module!r} has no lora_{side}; a LoRA needs both matrices."
            )
    if pair["A"][0] != pair["B"][1]:
        raise AdapterError(
            f"The matrices of {module!r} do not fit each other: lora_A is {list(pair['A'])} and "
            f"lora_B {list(pair['B'])}, "
            "where the first size of A and the second of B are the rank."
        )
    expected = _rank_of(module, config)
    if pair["A"][0] != expected:
        raise AdapterError(
            f"The module {module!r} has rank {pair['A'][0]}, but {CONFIG} says {expected}."
        )


def _rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank by PEFT's rule: the first pattern that matches the end of the module's name, else
    `r`."""
    rank: int = config["r"]
    for pattern, special in (config.get("rank_pattern") or {}).items():
        try:
            if matches_end(pattern, module):
                return int(special)
        except PatternError as error:
            raise AdapterError(f"rank_pattern in {CONFIG}: {error}.") from error
    return rank


def _check_fit(
    module: str, pair: dict[str, tuple[int, ...]], weight: tuple[int, ...] | None, *, turned: bool
) -> None:
    """`turned`: the base stores this weight as [in, out], as embeddings and Conv1D layers do."""
    if weight is None:
        raise AdapterError(
            f"The base has no module {module!r}: the adapter was trained on another base."
        )
    if len(weight) != 2:
        raise AdapterError(
            f"The base's {module!r} is not a linear layer: its weight is {list(weight)}."
        )
    expected = weight if turned else weight[::-1]
    given = (pair["A"][1], pair["B"][0])
    if given != expected:
        raise AdapterError(
            f"The adapter does not fit the base: for {module!r} it maps {given[0]} to {given[1]} "
            "values, "
            f"the base {expected[0]} to {expected[1]}."
        )
