"""Checks a LoRA's configuration: only plain LoRA is served, with values that PEFT loads."""

import math
from typing import Any

from serve.adapter.classifiers import LISTED
from serve.adapter.folder import CONFIG, CONVERT, AdapterError, named

RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for an engine's `max_lora_rank`."""
DEFAULT_RANK_LIMIT = 64

_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
_CONVERTED = {
    "use_dora": "DoRA",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trainable token embeddings",
    "use_bdlora": "block-diagonal LoRA",
    "ensure_weight_tying": "LoRA on tied weights as one (ensure_weight_tying)",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Variants that `choir convert` makes plain."""
_UNSERVED = {
    "lora_bias": "LoRA with a bias (lora_bias)",
    "layer_replication": "layer replication",
    "use_qalora": "QALoRA",
    "arrow_config": "routing among adapters (Arrow)",
    "megatron_config": "LoRA on Megatron's layers",
}
_TASKS = (
    "SEQ_CLS",
    "SEQ_2_SEQ_LM",
    "CAUSAL_LM",
    "TOKEN_CLS",
    "QUESTION_ANS",
    "FEATURE_EXTRACTION",
)
_UNSERVED_TASKS = {"TOKEN_CLS": "TokenClassification", "QUESTION_ANS": "QuestionAnswering"}
"""Tasks whose answers are about a text's tokens -> transformers' name."""


def check_task(config: dict[str, Any]) -> None:
    """Raises AdapterError for a task that PEFT does not know, with which it loads no adapter of any kind, and for one
    that is not served."""
    task = config.get("task_type")
    if task is not None and task not in _TASKS:
        raise AdapterError(
            f"The task_type in {CONFIG} must be one of PEFT's, {named(_TASKS)}, not {task!r}."
        )
    if (name := _UNSERVED_TASKS.get(str(task))) is not None:
        raise AdapterError(
            f"It is an adapter for {name} ({task} in {CONFIG}), which is not served: an ensemble answers about a whole "
            "text, not about its tokens."
        )


def check_config(config: dict[str, Any], max_rank: int | None) -> int:
    """Returns the adapter's largest rank. Raises AdapterError if the variant or a value is not served."""
    for field, feature in _CONVERTED.items():
        if config.get(field):
            raise AdapterError(f"{feature} is not served ({field} in {CONFIG}). {CONVERT}")
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
            f"Whole modules in an adapter ({named(saved)} in modules_to_save) are not served but for the head of a "
            f"sequence classifier; train LoRA on the others. {CONVERT}"
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights={init!r} changes the base's weights on loading, for all members. {CONVERT}"
        )
    dropout = config.get("lora_dropout", 0)
    if not _is_number(dropout) or not 0 <= dropout <= 1:
        raise AdapterError(
            f"lora_dropout in {CONFIG} must be a number between 0 and 1, not {dropout!r}."
        )
    _check_alpha(config)
    return _check_rank(config, max_rank)


def _check_alpha(config: dict[str, Any]) -> None:
    for alpha in (config.get("lora_alpha"), *_pattern_values(config, "alpha_pattern")):
        if not _is_number(alpha):
            raise AdapterError(
                f"The scaling in {CONFIG} (lora_alpha, alpha_pattern) must be a number, not {alpha!r}."
            )


def _check_rank(config: dict[str, Any], max_rank: int | None) -> int:
    ranks = [config.get("r"), *_pattern_values(config, "rank_pattern")]
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


def _pattern_values(config: dict[str, Any], field: str) -> list[Any]:
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{field} in {CONFIG} must be an object of module patterns and numbers.")
    return list(patterns.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
