"""The base that an adapter says it was trained on, and the base that is there."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.adapter import AdapterError, inspect_adapter
from serve.adapter.origin import ORIGIN, base_digest, record_base
from tests.serve.conftest import AdapterFolder


def test_the_digest_is_what_sha256sum_says_of_the_weights(causal_base: Path) -> None:
    weights = causal_base / "model.safetensors"
    line = f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  model.safetensors\n"
    assert base_digest(causal_base) == f"sha256:{hashlib.sha256(line.encode()).hexdigest()}"


def test_an_adapter_of_this_base_passes_and_one_of_another_with_equal_shapes_does_not(
    causal_base: Path, make_adapter: Callable[..., AdapterFolder], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_adapter(causal_base).path
    record_base(folder, causal_base)
    inspect_adapter(folder, base=causal_base)
    inspect_adapter(folder)

    other = tmp_path / "other"
    config = AutoModelForCausalLM.from_pretrained(causal_base).config
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(AdapterError, match="trained on another base"):
        inspect_adapter(folder, base=other)


@pytest.mark.parametrize("content", ["{", "[]", '{"base": 3}', '{"base": "sha256:0"}'])
def test_an_origin_that_is_unsound_or_another(
    causal_base: Path, make_adapter: Callable[..., AdapterFolder], content: str
) -> None:
    folder = make_adapter(causal_base).path
    (folder / ORIGIN).write_text(content)
    with pytest.raises(AdapterError, match=ORIGIN):
        inspect_adapter(folder, base=causal_base)


def test_what_says_nothing_of_a_base_passes(
    causal_base: Path, make_adapter: Callable[..., AdapterFolder]
) -> None:
    folder = make_adapter(causal_base).path
    (folder / ORIGIN).write_text(json.dumps({"note": "mine"}))
    inspect_adapter(folder, base=causal_base)
