"""The base that training and the offline evaluation load."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble
from training.offline.members import OfflineMembers
from training.stages.base import Base

TOKENS = torch.tensor([[3, 7, 1, 9, 4, 2]])


@pytest.fixture
def capped(tmp_path: Path) -> Path:
    """A small Gemma 2 whose cap on attention logits changes its answers."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_logit_softcapping=0.01,
        initializer_range=1.0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.inference_mode()
def test_a_cap_on_attention_logits_is_kept(capped: Path) -> None:
    def logits(attention: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(capped, attn_implementation=attention)
        return model(TOKENS).logits

    trained = Base(capped, "causal", "base", False).model()(TOKENS).logits

    torch.testing.assert_close(trained, logits("eager"))
    assert (trained - logits("sdpa")).abs().max() > 1e-3, "the cap makes no difference here"


def test_the_offline_evaluation_keeps_it_too(
    capped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.offline.prompts.read_tokenizer", lambda *_: None)
    bundle = Bundle.create(tmp_path / "bundle", BaseSpec(path=str(capped)))
    ensemble = Ensemble.model_validate(
        {
            "format": 1,
            "name": "intents",
            "version": 1,
            "task": "classification",
            "members": [{"name": "a", "adapters": []}],
            "fusion": {"method": "average"},
            "labels": ["yes", "no"],
        }
    )

    members = OfflineMembers(bundle, ensemble)

    assert members._model.config._attn_implementation == "eager"
