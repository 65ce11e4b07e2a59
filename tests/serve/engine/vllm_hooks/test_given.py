"""Engine arguments are checked without vLLM, against what vLLM itself has."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from serve.engine.vllm_hooks.given import EngineSettingError, _annotations, check_given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_model_length": 1}, "did you mean 'max_model_len'"),
        ({"max-model-len": 1}, "did you mean 'max_model_len'"),
        ({"zzzz": 1}, r"no engine argument 'zzzz'\. Names are"),
        ({"tokenizer": "x"}, "belongs to Choir: it is the base's own"),
        ({"max_model_len": "much"}, "'max_model_len' is 'much', and must be a whole number"),
        ({"max_model_len": True}, "must be a whole number"),
        ({"max_num_seqs": 1.5}, "must be a whole number or null"),
        ({"gpu_memory_utilization": "0.5"}, "must be a number"),
        ({"enforce_eager": 1}, "must be true or false"),
        ({"kv_cache_dtype": "fp9"}, "must be 'auto' or .*'fp8'"),
    ],
)
def test_a_wrong_name_or_value_is_said_with_what_is_right(given: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineSettingError, match=says):
        check_given(given)


def test_what_vllm_takes_is_taken() -> None:
    check_given(
        {
            "max_model_len": 512,
            "max_num_seqs": None,
            "gpu_memory_utilization": 1,
            "kv_cache_memory_bytes": 1 << 28,
            "enforce_eager": True,
            "kv_cache_dtype": "fp8",
            "quantization": "awq",
            "limit_mm_per_prompt": {"image": 1},
            "hf_overrides": {},
            "allowed_media_domains": ["example.org"],
            "compilation_config": {"level": 0},
        }
    )


def test_names_are_those_of_the_vllm_that_is_installed() -> None:
    from vllm import AsyncEngineArgs

    assert set(_annotations()) == {field.name for field in dataclasses.fields(AsyncEngineArgs)}


def test_vllm_is_not_imported_for_that() -> None:
    code = (
        "import sys; from serve.engine.vllm_hooks.given import check_given; check_given({'seed': 1}); "
        "sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
