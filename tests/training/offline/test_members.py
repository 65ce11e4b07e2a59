"""The offline reference against plain PEFT and transformers, one label and one token at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from serve.bundle import Bundle
from serve.manifest import Ensemble
from training.offline.members import OfflineMembers

TEXTS = [
    "my card is lost number 1",
    "the top up failed",
    "x",
    "send money abroad",
    "the card number 7",
]


def member_model(bundle: Bundle, ensemble: Ensemble, member: int, loader: Any) -> Any:
    """The member by PEFT: its last adapter on the base, into which an earlier one is merged."""
    model = loader.from_pretrained(bundle.base_source, dtype=torch.float32)
    *before, last = ensemble.members[member].adapters
    for adapter in before:
        lora = PeftModel.from_pretrained(model, str(bundle.adapter_dir(adapter)))
        model = lora.merge_and_unload()
    return PeftModel.from_pretrained(model, str(bundle.adapter_dir(last))).eval()


def naive_scores(
    model: Any, tokenizer: Any, prompt: str, texts: list[str], mean: bool
) -> list[float]:
    """One full forward pass for each label."""
    alone = tokenizer(prompt.rstrip(" "))["input_ids"]
    scores = []
    for text in texts:
        whole = tokenizer(prompt + text)["input_ids"]
        start = next(
            (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone)
        )
        with torch.inference_mode():
            # With prompt tuning, the output includes the virtual tokens.
            logits = model(input_ids=torch.tensor([whole])).logits[0, -len(whole) :]
            logits = logits.double().log_softmax(-1)
        picked = [float(logits[place - 1, whole[place]]) for place in range(start, len(whole))]
        scores.append(sum(picked) / (len(picked) if mean else 1))
    return scores


@pytest.mark.parametrize("kinds", ["causal_bundle", "soft_bundle"])
@pytest.mark.parametrize("scoring", ["sum", "mean"])
def test_label_probabilities_equal_one_forward_a_label(
    kinds: str, scoring: str, request: pytest.FixtureRequest
) -> None:
    # The template ends in a space, and the label texts have different numbers of tokens.
    bundle: Bundle = request.getfixturevalue(kinds)
    ensemble = bundle.ensemble("topics").model_copy(update={"label_scoring": scoring})
    tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
    texts = [ensemble.verbalizers.get(label, f" {label}") for label in ensemble.labels or []]
    assert len({len(tokenizer(text)["input_ids"]) for text in texts}) > 1
    found = OfflineMembers(bundle, ensemble).outputs(TEXTS)
    assert found.shape == (len(ensemble.members), len(TEXTS), 3)
    for member in range(len(ensemble.members)):
        model = member_model(bundle, ensemble, member, AutoModelForCausalLM)
        for row, text in enumerate(TEXTS):
            prompt = ensemble.template.replace("{text}", text)
            scores = torch.tensor(naive_scores(model, tokenizer, prompt, texts, scoring == "mean"))
            np.testing.assert_allclose(found[member, row], scores.softmax(0), atol=1e-5)


def test_a_member_without_an_adapter_is_the_base(causal_bundle: Bundle) -> None:
    ensemble = causal_bundle.ensemble("topics")
    bare = ensemble.members[1].model_copy(update={"adapters": []})
    ensemble = ensemble.model_copy(update={"members": [ensemble.members[0], bare]})
    found = OfflineMembers(causal_bundle, ensemble).outputs(TEXTS)[1]
    base = AutoModelForCausalLM.from_pretrained(
        causal_bundle.base_source, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    texts = [ensemble.verbalizers.get(label, f" {label}") for label in ensemble.labels or []]
    scores = naive_scores(
        base, tokenizer, ensemble.template.replace("{text}", TEXTS[0]), texts, mean=False
    )
    np.testing.assert_allclose(found[0], torch.tensor(scores).softmax(0), atol=1e-5)


def test_encoder_probabilities_equal_the_contracts_formula(encoder_bundle: Bundle) -> None:
    ensemble = encoder_bundle.ensemble("topics")
    tokenizer = AutoTokenizer.from_pretrained(encoder_bundle.base_source)
    found = OfflineMembers(encoder_bundle, ensemble).outputs(TEXTS)
    for member, normalized in enumerate([True, False]):
        model = member_model(encoder_bundle, ensemble, member, AutoModel)
        head = load_file(
            encoder_bundle.adapter_dir(ensemble.members[member].adapters[0]) / "head.safetensors"
        )
        assert head["weight"].shape == (3, 32)
        assert head["bias"].shape == (3,)
        for row, text in enumerate(TEXTS):
            with torch.inference_mode():
                states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            vector = states.mean(0)
            if normalized:
                vector = vector / vector.norm()
            expected = (head["weight"] @ vector + head["bias"]).softmax(0)
            np.testing.assert_allclose(found[member, row], expected, atol=1e-5)


def greedy(models: list[Any], weights: list[float], tokenizer: Any, prompt: str) -> str:
    """The argmax of the mixture of `models`, with one full forward pass for each token and model."""
    ids = tokenizer(prompt)["input_ids"]
    written: list[int] = []
    while len(written) < 8:
        inputs = torch.tensor([ids + written])
        with torch.inference_mode():
            rows = [model(input_ids=inputs).logits[0, -1].double().softmax(-1) for model in models]
        mixture = sum(weight * row for weight, row in zip(weights, rows, strict=True))
        token = int(torch.as_tensor(mixture).argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    return str(tokenizer.decode(written)).strip()


@pytest.mark.parametrize("kinds", ["causal_bundle", "soft_bundle"])
def test_greedy_answers_equal_argmax_token_by_token(
    kinds: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(kinds)
    ensemble = bundle.ensemble("replies")
    tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
    answers = OfflineMembers(bundle, ensemble).answers(TEXTS, 8)
    for member in range(len(ensemble.members)):
        model = member_model(bundle, ensemble, member, AutoModelForCausalLM)
        for row, text in enumerate(TEXTS):
            prompt = ensemble.template.replace("{text}", text)
            assert answers[member][row] == greedy([model], [1.0], tokenizer, prompt)


@pytest.mark.parametrize("kinds", ["causal_bundle", "soft_bundle"])
def test_log_probabilities_of_answers_are_the_models_own(
    kinds: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(kinds)
    ensemble = bundle.ensemble("replies")
    tokenizer = AutoTokenizer.from_pretrained(bundle.base_source)
    offline = OfflineMembers(bundle, ensemble)
    answers = [offline.written(ensemble.members[0], TEXTS, 8)[0].tokens, *[(5,), (7, 6, 5, 4)] * 3]
    answers = answers[: len(TEXTS)]
    found = offline.log_probs(TEXTS, answers, 8)
    for member in range(len(ensemble.members)):
        model = member_model(bundle, ensemble, member, AutoModelForCausalLM)
        for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
            prompt = tokenizer(ensemble.template.replace("{text}", text))["input_ids"]
            whole = torch.tensor([[*prompt, *answer]])
            with torch.inference_mode():
                logits = model(input_ids=whole).logits[0, -len(answer) - 1 : -1]
            own = logits.double().log_softmax(-1)[range(len(answer)), list(answer)]
            assert found[member, row] == pytest.approx(float(own.sum()), abs=1e-4)


def test_members_of_all_kinds_write_together_as_pefts_mixture_does(soft_bundle: Bundle) -> None:
    ensemble = soft_bundle.ensemble("replies")
    tokenizer = AutoTokenizer.from_pretrained(soft_bundle.base_source)
    count = len(ensemble.members)
    models = [
        member_model(soft_bundle, ensemble, member, AutoModelForCausalLM) for member in range(count)
    ]
    written = OfflineMembers(soft_bundle, ensemble).fused_answers(TEXTS, "average", 8)
    for text, answer in zip(TEXTS, written, strict=True):
        prompt = ensemble.template.replace("{text}", text)
        assert answer == greedy(models, [1 / count] * count, tokenizer, prompt)
