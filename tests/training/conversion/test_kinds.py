"""`choir convert` is named for the kinds that it can convert, and for no others: PEFT itself is asked which merge."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from transformers import AutoModelForCausalLM

from serve.adapter import CONVERT, AdapterError
from serve.adapter.folder import CONVERTED, kind_of_config, read_config
from serve.adapter.lora.config import check_config
from tests.serve import tiny
from training.conversion.convert import convert
from training.conversion.errors import ConversionError
from training.progress import Unwatched

SERVED = {"LORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
ELSEWHERE = {"XLORA"}
"""Mixes trained LoRAs by the input, so that it is no change of the weights; it cannot be made from nothing."""
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "total_step": 10},
    "BEFT": {"target_modules": ["v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"target_modules": ["k_proj"], "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [3, 9], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 50},
}
KINDS = sorted({kind.value for kind in PeftType} - SERVED - ELSEWHERE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_base(tmp_path_factory.mktemp("kinds") / "base", hidden=64, layers=1)


def config_of(kind: str) -> Any:
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]} | OPTIONS.get(kind, {})
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in options.items() if name in known})


def made(config: Any, base: Path, folder: Path) -> Path:
    """An adapter all of whose values differ from their start."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def is_convertible(kind: str, base: Path, folder: Path) -> bool:
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(kind))
    if not hasattr(tuner, "merge_and_unload"):
        return False
    with warnings.catch_warnings(action="ignore"):  # advice of each kind
        given = made(config_of(kind), base, folder / "given")
        try:
            found = convert(given, folder / "converted", Unwatched(), base=base)
        except ConversionError:
            return False
    assert found.exact, "a rank of 64 is all of these layers"
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_convert_is_named_where_it_helps(kind: str, base: Path, tmp_path: Path) -> None:
    assert (kind in CONVERTED) == is_convertible(kind, base, tmp_path)


@pytest.mark.parametrize("kind", sorted({*KINDS, *ELSEWHERE}))
def test_a_refused_kind_says_whether_to_convert_it(kind: str) -> None:
    with pytest.raises(AdapterError, match=f"'{kind}', which is not served") as refused:
        kind_of_config({"peft_type": kind})
    assert (CONVERT in str(refused.value)) == (kind in CONVERTED)


@pytest.mark.parametrize(
    "options",
    [
        {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)},
        {"ensure_weight_tying": True, "target_modules": ["embed_tokens", "q_proj"]},
        {"kasa_config": KasaConfig()},
        {"monteclora_config": MontecloraConfig()},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_variant_of_lora_that_is_referred_to_convert_is_converted(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
    with warnings.catch_warnings(action="ignore"):  # advice of each variant
        given = made(LoraConfig(**plain | options), base, tmp_path / "given")
        with pytest.raises(AdapterError, match="is not served") as refused:
            check_config(read_config(given), None)
        assert CONVERT in str(refused.value)
        found = convert(given, tmp_path / "converted", Unwatched(), base=base)
    assert found.exact


def test_the_list_has_no_kind_that_peft_does_not_know() -> None:
    assert {kind.value for kind in PeftType} >= CONVERTED
