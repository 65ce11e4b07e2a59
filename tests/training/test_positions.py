"""Texts that are longer than the base has positions for, in training and offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from serve.bundle import BaseSpec, Bundle
from serve.manifest import Ensemble, FusionSpec, Member
from tests.serve import tiny
from tests.training.conftest import recipe_content
from training.offline.members import OfflineMembers
from training.pipeline import train

POSITIONS = 24
LONG = " ".join(["my card is lost"] * 30)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory, encoder_base: Path) -> Path:
    """A masked model like RoBERTa, whose first position follows the padding token's id."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = AutoTokenizer.from_pretrained(encoder_base)
    tokenizer.save_pretrained(folder)
    padding = tokenizer.pad_token_id
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS + padding + 1,
        pad_token_id=padding,
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_long_text_is_cut_to_the_positions_in_training_and_offline(
    roberta: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    ensemble: dict[str, Any] = recipe_content()["ensembles"][0] | {
        "template": "{text}",
        "verbalizers": {},
        "candidates": [],
        "members": [{"name": "a", "seed": 1, "normalize": False}],
    }
    base = {"kind": "encoder", "path": str(roberta)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    for name in ("train.csv", "test.csv"):
        with (tmp_path / name).open("a") as rows:
            rows.writelines(f"{LONG} {name} {number},card,ok\n" for number in range(8))
    bundle = Bundle.open(train(recipe, tmp_path / "bundle").path)
    assert bundle.verify() == []
    ensembles = bundle.ensemble("topics")
    [[found]] = OfflineMembers(bundle, ensembles).outputs([LONG])
    np.testing.assert_allclose(found, by_peft(roberta, bundle), atol=1e-5)


@torch.no_grad()
def by_peft(roberta: Path, bundle: Bundle) -> np.ndarray:
    """Probabilities of the first tokens of LONG, as many as there are positions for."""
    [reference] = bundle.ensemble("topics").members[0].adapters
    adapter = bundle.adapter_dir(reference)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(roberta), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    ids = tokenizer(LONG, truncation=True, max_length=POSITIONS, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, POSITIONS)
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    head = load_file(adapter / "head.safetensors")
    return (head["weight"] @ states.mean(1)[0] + head["bias"]).softmax(0).numpy()


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal base with a learned vector for each position."""
    folder = tiny.causal_base(tmp_path_factory.mktemp("opt") / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_long_prompt_loses_its_beginning_offline(opt: Path, tmp_path: Path) -> None:
    """A plain base's label scores and greedy answer, against transformers alone on the tokens that are left."""
    tokenizer = AutoTokenizer.from_pretrained(opt)
    model = OPTForCausalLM.from_pretrained(opt).eval()
    bundle = Bundle.create(tmp_path / "bundle", BaseSpec(path=str(opt)))
    member = Member(name="base", adapters=[])
    common: dict[str, Any] = {"format": 1, "version": 1, "members": [member]}
    fusion = FusionSpec(method="average")
    labels = Ensemble(
        **common, name="l", task="classification", fusion=fusion, labels=["yes", "no"]
    )
    scores = []
    whole = [tokenizer(f"{LONG} {label}")["input_ids"] for label in ("yes", "no")]
    over = max(map(len, whole)) - POSITIONS  # no label has more of the prompt before it
    for ids in whole:
        start = len(tokenizer(LONG)["input_ids"]) - len(ids)
        ids = ids[over:]
        with torch.inference_mode():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logs[place - 1, ids[place]]) for place in range(start, 0)))
    [[found]] = OfflineMembers(bundle, labels).outputs([LONG])
    np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(), atol=1e-5)

    text = Ensemble(**common, name="t", task="generation", fusion=fusion)
    ids = tokenizer(LONG)["input_ids"][-(POSITIONS - 4) :]
    with torch.inference_mode():
        written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0]
    offline = OfflineMembers(bundle, text)
    right = tokenizer.decode(written[len(ids) :], skip_special_tokens=True).strip()
    assert offline.answers([LONG], 4) == [[right]]
    assert offline.fused_answers([LONG], "average", 4) == [right]
