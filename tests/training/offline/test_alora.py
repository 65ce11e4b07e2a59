"""Activated LoRAs offline, against PEFT's whole forward passes and its own `generate`."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.bundle import Bundle
from serve.labels import LabelError
from serve.manifest import Ensemble
from serve.pack import pack
from tests.serve import tiny
from training.offline.members import OfflineMembers

ASKS = {"a": "\nIntent:", "b": "\nIs it about a card? Say"}
LABELS = ["card lost", "card", "top up"]
TEXTS = ["where is my card", "A", "please cancel the payment that I made this morning"]
LIMIT = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The plain LoRA is loaded first: PEFT's wrapper of it never looks for an invocation."""
    root = tmp_path_factory.mktemp("alora")
    base = tiny.causal_base(root / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    adapters = {"lora": tiny.lora(base, root / "lora", seed=3)}
    for seed, (name, text) in enumerate(ASKS.items(), start=1):
        ids = tokenizer(text)["input_ids"]
        adapters[name] = tiny.lora(base, root / name, seed=seed, invocation=ids)
    return pack(
        str(base),
        adapters,
        root / "bundle",
        task="classification",
        fusion="average",
        labels=LABELS,
        template="Message: {text}{invocation}",
    )


class Peft:
    """One member by PEFT."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble, member: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
        model = AutoModelForCausalLM.from_pretrained(bundle.base_source, dtype=torch.float32)
        folder = bundle.adapter_dir(ensemble.members[member].adapters[0])
        self.model = PeftModel.from_pretrained(model, str(folder)).eval()
        self.asks = ASKS.get(ensemble.members[member].name, "")

    def prompt(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(f"Message: {text}")["input_ids"]
        return ids + (self.tokenizer(self.asks)["input_ids"] if self.asks else [])

    @torch.no_grad()
    def logs(self, ids: list[int]) -> torch.Tensor:
        return torch.as_tensor(self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1))


def test_label_probabilities_equal_peft(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("ensemble")
    found = OfflineMembers(bundle, ensemble).outputs(TEXTS)
    for member in range(3):
        peft = Peft(bundle, ensemble, member)
        for row, text in enumerate(TEXTS):
            ids, scores = peft.prompt(text), []
            for label in LABELS:
                tokens = peft.tokenizer(f" {label}")["input_ids"]
                logs = peft.logs(ids + tokens)[len(ids) - 1 : -1]
                scores.append(sum(float(logs[n, token]) for n, token in enumerate(tokens)))
            expected = torch.tensor(scores, dtype=torch.float64).softmax(0)
            np.testing.assert_allclose(found[member, row], expected, atol=1e-5)


def test_answers_equal_peft_alone_and_fused(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("ensemble")
    offline = OfflineMembers(bundle, ensemble)
    members = [Peft(bundle, ensemble, number) for number in range(3)]

    def written(who: list[Peft], text: str) -> str:
        tokens: list[int] = []
        prompts = [each.prompt(text) for each in who]
        while len(tokens) < LIMIT:
            rows = [
                each.logs(ids + tokens)[-1].exp() for each, ids in zip(who, prompts, strict=True)
            ]
            token = int(torch.stack(rows).mean(0).argmax())
            if token == 0:
                break
            tokens.append(token)
        return str(who[0].tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    alone = offline.answers(TEXTS, LIMIT)
    for own, peft in zip(alone, members, strict=True):
        assert own == [written([peft], text) for text in TEXTS]
    fused = offline.fused_answers(TEXTS, "average", LIMIT)
    assert fused == [written(members, text) for text in TEXTS]


def test_a_template_without_the_invocation_is_an_error(bundle: Bundle) -> None:
    """PEFT would answer as the base."""
    ensemble = bundle.ensemble("ensemble").model_copy(update={"template": "{text}"})
    with pytest.raises(LabelError, match="must end in"):
        OfflineMembers(bundle, ensemble).outputs(TEXTS)


def test_tokens_without_the_invocation_are_an_error(bundle: Bundle) -> None:
    ensemble = bundle.ensemble("ensemble")
    alone = ensemble.model_copy(update={"members": ensemble.members[1:2]})
    offline = OfflineMembers(bundle, alone)

    def keep(log_probs: Any) -> None:
        return None

    with pytest.raises(LabelError, match="lacks the tokens"):
        offline.answer_log_probs([[70, 71]], [[72]], "average", keep)
