"""How vLLM itself reads the files beside a base's weights, without an engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from serve.base.side_files import GenerationDefaults, read_generation_defaults, read_tokenizer
from tests.serve import tiny


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.causal_base(tmp_path / "base", layers=1)


def arguments(base: Path, **given: Any) -> Any:
    from serve.engine.vllm_hooks.arguments import engine_args

    return engine_args(
        model=str(base),
        revision=None,
        kind="causal",
        dtype="float32",
        adapter_slots=1,
        host_adapters=1,
        max_lora_rank=8,
        given=given,
    )


def read_by_vllm(base: Path) -> GenerationDefaults:
    """What a completion without parameters gets."""
    from vllm import SamplingParams
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    config = arguments(base).create_model_config()
    request = CompletionRequest(model="choir", prompt="x")
    params: SamplingParams = request.to_sampling_params(1, config.get_diff_sampling_param())
    end = read_tokenizer(str(base)).eos_token_id
    params.update_from_generation_config(config.try_get_generation_config(), end)
    return GenerationDefaults(
        frozenset([*(params.stop_token_ids or ()), end]),
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("generation_config.json", {}, {}),
        ("generation_config.json", {"eos_token_id": 7}, {"ends": {0, 7}}),
        (
            "generation_config.json",
            {"eos_token_id": [0, 7, 9], "repetition_penalty": 1.3, "num_beams": 4, "top_k": 3},
            {"ends": {0, 7, 9}, "repetition": 1.3},
        ),
        (
            "generation_config.json",
            {"frequency_penalty": 0.25, "presence_penalty": 1.5, "no_repeat_ngram_size": 2},
            {"frequency": 0.25, "presence": 1.5},
        ),
        ("config.json", {"eos_token_id": [0, 5]}, {"ends": {0, 5}}),
        ("config.json", {"repetition_penalty": 1.2}, {}),
    ],
)
def test_generation_defaults_are_vllms(
    base: Path, name: str, content: dict[str, Any], expected: dict[str, Any]
) -> None:
    file = base / name
    if name == "config.json":
        (base / "generation_config.json").unlink()
        content = json.loads(file.read_text()) | content
    file.write_text(json.dumps(content))
    found = read_generation_defaults(str(base), read_tokenizer(str(base)))
    expected = {"ends": {0}, "repetition": 1.0, "frequency": 0.0, "presence": 0.0} | expected
    assert {**vars(found), "ends": set(found.ends)} == expected
    assert found == read_by_vllm(base)


def test_mistrals_own_formats_beside_the_base_are_ignored(base: Path) -> None:
    from vllm.tokenizers.registry import tokenizer_args_from_config

    for name in ("consolidated.safetensors", "params.json", "tekken.json"):
        (base / name).write_text("{}")
    config = arguments(base).create_model_config()
    assert config.hf_config.model_type == "llama"
    assert tokenizer_args_from_config(config)[0] == "hf"


@pytest.mark.parametrize("name", ["tokenizer", "hf_config_path", "config_format"])
def test_another_tokenizer_or_config_than_the_bases_is_refused(base: Path, name: str) -> None:
    from serve.engine.vllm_hooks.given import EngineSettingError

    with pytest.raises(EngineSettingError, match=f"'{name}' belongs to Choir"):
        arguments(base, **{name: "elsewhere"})


def test_the_probe_has_a_token_in_every_alphabet() -> None:
    from serve.engine.scoring.probe import probe_tokens

    tokens = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "δ": 2, "ζ": 3}, []))
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    assert set(probe_tokens(tokenizer)) & {2, 3}
