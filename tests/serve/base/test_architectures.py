"""Which bases are served: by their config.json alone, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from serve.base.architectures import ENCODERS, served_as, unserved_base
from serve.base.folder import kind_of
from serve.bundle import BaseSpec, Bundle, BundleError
from serve.pack import pack


@pytest.mark.parametrize(
    ("model_type", "architecture", "backbone"),
    [
        ("bert", "BertForMaskedLM", "ChoirBertBackbone"),
        ("bert", "BertForPreTraining", "ChoirBertBackbone"),
        ("roberta", "RobertaForMaskedLM", "RobertaModel"),
        ("xlm-roberta", "XLMRobertaForMaskedLM", "RobertaModel"),
        ("camembert", "CamembertForMaskedLM", "RobertaModel"),
        ("electra", "ElectraForPreTraining", "ChoirBertBackbone"),
        ("modernbert", "ModernBertForMaskedLM", "ModernBertModel"),
        ("llama", "LlamaForCausalLM", None),
    ],
)
def test_a_published_base_is_served_as_its_backbone(
    model_type: str, architecture: str, backbone: str | None
) -> None:
    config = {"model_type": model_type, "architectures": [architecture]}
    assert unserved_base(config, kind_of(config)) is None
    assert served_as(config) == backbone


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel .* LoRA, .* none but Conv1D",
        ),
        (
            {"model_type": "bloom", "architectures": ["BloomForCausalLM"]},
            "BloomForCausalLM .* LoRA, .* cannot run this model's attention",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "has no model of it"),
        ({"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]}, "MPNet .* has no model of it"),
        ({"model_type": "albert", "architectures": ["AlbertModel"]}, "ALBERT .* has no model of it"),
        (
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
            "BertForSequenceClassification, whose own head would not be asked",
        ),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "positions of the type 'relative_key'",
        ),
        ({"model_type": "roberta", "is_decoder": True}, "as a decoder"),
        (
            {"model_type": "electra", "embedding_size": 128, "hidden_size": 256},
            "embeddings that are not as wide",
        ),
        ({"model_type": "llama"}, "names no architectures"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_reason(
    config: dict[str, Any], reason: str
) -> None:
    kind = "encoder" if config["model_type"] in ENCODERS else "causal"
    found = unserved_base(config, kind)
    with pytest.raises(AssertionError, match=reason):
        assert found is None, found


def test_an_encoder_is_no_causal_base() -> None:
    config = {"model_type": "bert", "architectures": ["BertLMHeadModel"]}
    assert kind_of(config) == "encoder"
    assert 'Its kind is "encoder"' in str(unserved_base(config, "causal"))


def published(folder: Path, base: Path, architecture: str, model_type: str) -> Path:
    """`base`, with another architecture in its config.json."""
    folder.mkdir()
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": [architecture], "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(base / "model.safetensors"), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("architecture", "model_type", "reason"),
    [
        ("GPT2LMHeadModel", "gpt2", "GPT2LMHeadModel cannot be served"),
        ("MPNetForMaskedLM", "mpnet", "The base is MPNet and cannot be served"),
    ],
)
def test_pack_and_verify_refuse_what_no_engine_can_start_on(
    tmp_path: Path,
    encoder_base: Path,
    make_adapter: Any,
    architecture: str,
    model_type: str,
    reason: str,
) -> None:
    adapter = make_adapter(encoder_base)
    adapter.add_head()
    base = published(tmp_path / "published", encoder_base, architecture, model_type)
    given = {"task": "classification", "fusion": "average", "labels": ["x", "y", "z"]}
    with pytest.raises(BundleError, match=reason):
        pack(str(base), {"a": adapter.path}, tmp_path / "bundle", **given)
    bundle = Bundle.create(tmp_path / "by-hand", BaseSpec(path=str(base)))
    assert any(reason in problem for problem in bundle.verify())


def test_a_published_bert_is_packed(tmp_path: Path, encoder_base: Path, make_adapter: Any) -> None:
    """`bert-base-uncased` is a BertForMaskedLM."""
    adapter = make_adapter(encoder_base)
    adapter.add_head()
    base = published(tmp_path / "published", encoder_base, "BertForMaskedLM", "bert")
    given = {"task": "classification", "fusion": "average", "labels": ["x", "y", "z"]}
    assert pack(str(base), {"a": adapter.path}, tmp_path / "bundle", **given).verify() == []
