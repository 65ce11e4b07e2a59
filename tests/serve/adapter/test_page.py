"""docs/adapters.md says of each kind of adapter what the code does with it."""

import re
from pathlib import Path
from typing import Any

import pytest

from serve.adapter import CONVERT, AdapterError
from serve.adapter.folder import CONVERTED, kind_of_config
from serve.adapter.lora.config import check_config, check_task

PAGE = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text("utf-8")
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["query"]}
HEAD = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "LoRA, with any ranks": [LORA, {**LORA, "use_rslora": True, "rank_pattern": {"query": 2}}],
    "prefix tuning": [{"peft_type": t} for t in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")],
    "LoRA on `embed_tokens`": [{**LORA, "target_modules": ["embed_tokens", "lm_head"]}],
    "SEQ_CLS over a causal base": [{**LORA, **HEAD}],
    "SEQ_CLS over BERT": [
        {**LORA, **HEAD},
        {**LORA, **HEAD, "modules_to_save": ["pre_classifier", "classifier", "score"]},
    ],
    "PiSSA": [{**LORA, "init_lora_weights": init} for init in ("pissa", "pissa_niter_4", "olora")],
    "AdaLoRA": [{**LORA, "peft_type": "ADALORA"}],
    "`trainable_token_indices`": [
        {**LORA, "trainable_token_indices": [3]},
        {**LORA, "modules_to_save": ["embed_tokens"]},
    ],
    "DoRA": [
        {**LORA, "use_dora": True},
        *({"peft_type": kind} for kind in CONVERTED),
    ],
    "LN tuning": [
        {"peft_type": kind} for kind in ("LN_TUNING", "BEFT", "LILY", "POLY", "XLORA", "SHADOW")
    ],
    "trained biases": [
        {**LORA, "bias": "all"},
        {**LORA, "lora_bias": True},
        {**LORA, "layer_replication": [[0, 1]]},
    ],
    "TOKEN_CLS": [{**LORA, "task_type": task} for task in ("TOKEN_CLS", "QUESTION_ANS")],
}
"""The start of a row -> configurations that it is about. The other rows are about files and bases."""


def what_happens(config: dict[str, Any]) -> str:
    try:
        kind = kind_of_config(config)
        check_task(config)
        if kind == "lora":
            check_config(config, None)
    except AdapterError as error:
        return "converted" if CONVERT in str(error) else "refused"
    return "served"


def said() -> dict[str, str]:
    """Each row's adapter -> the word that its second cell begins with."""
    rows = re.findall(r"^\| (.+?) \| (served|converted|refused)\b", PAGE, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_says_what_the_code_does(row: str) -> None:
    [word] = [word for adapter, word in said().items() if adapter.startswith(row)]
    assert {what_happens(config) for config in ROWS[row]} == {word}


def test_every_row_about_a_configuration_is_held() -> None:
    others = {"`adapter_model.bin`, shards", "a fully tuned model", "a resized vocabulary"}
    held = {adapter for adapter in said() for row in ROWS if adapter.startswith(row)}
    assert set(said()) - held == others
