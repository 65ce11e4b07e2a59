"""Predictions over HTTP, against PEFT."""

import numpy as np
import pytest

from choir_client import Choir
from tests.service.models import LABELS, TEMPLATE, TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine


def test_every_member_and_the_average_equal_peft(service: Service, models: Models) -> None:
    answer = service.post(
        "/v1/predict", {"model": "intents", "input": TEXTS, "return_members": True}
    ).json()
    expected = np.array(
        [
            [models.references[models.digest(name)][text] for text in TEXTS]
            for name in ("a", "b", "c")
        ]
    )
    for number, row in enumerate(answer["data"]):
        members = [[m["probabilities"][label] for label in LABELS] for m in row["members"]]
        np.testing.assert_allclose(members, expected[:, number], atol=1e-3)
        fused = [row["probabilities"][label] for label in LABELS]
        np.testing.assert_allclose(fused, expected[:, number].mean(0), atol=1e-3)
        assert row["label"] == LABELS[int(np.argmax(fused))]
        assert row["index"] == number
        assert sum(fused) == pytest.approx(1, abs=1e-6)
    assert answer["object"] == "list"
    assert answer["usage"]["member_tokens"] > 3 * answer["usage"]["prompt_tokens"]


def test_one_member_alone(service: Service, models: Models) -> None:
    answer = service.post("/v1/predict", {"model": "intents/b", "input": TEXTS[0]}).json()
    row = answer["data"][0]
    expected = models.references[models.digest("b")][TEXTS[0]]
    np.testing.assert_allclose([row["probabilities"][x] for x in LABELS], expected, atol=1e-3)
    assert answer["model"].startswith("intents@")


def test_the_request_chooses_the_method(service: Service, models: Models) -> None:
    body = {
        "model": "intents",
        "input": TEXTS[0],
        "fusion": {"method": "vote", "weights": {"a": 1, "b": 0, "c": 0}},
    }
    row = service.post("/v1/predict", body).json()["data"][0]
    expected = models.references[models.digest("a")][TEXTS[0]]
    assert row["label"] == LABELS[int(np.argmax(expected))]
    assert row["probabilities"][row["label"]] == pytest.approx(1)


def test_members_are_asked_until_the_answer_is_safe(service: Service, models: Models) -> None:
    with Choir(service.url) as choir:
        plain = choir.predict("careful", TEXTS)
        early = choir.predict(
            "careful", TEXTS, fusion={"early_exit": {"risk": 0.05}}, return_members=True
        )
    assert {item.members_asked for item in plain.data} == {None}
    said = {name: models.references[models.digest(name)] for name in ("b", "c", "a")}
    surest = max(TEXTS, key=lambda text: max(said["b"][text]))
    assert early.data[TEXTS.index(surest)].members_asked == 1
    assert sum(item.members_asked or 0 for item in early.data) > len(TEXTS)
    for text, item in zip(TEXTS, early.data, strict=True):
        asked = ["b", "c", "a"][: item.members_asked]
        mean = np.mean([said[name][text] for name in asked], axis=0)
        found = [item.probabilities[label] for label in LABELS]
        np.testing.assert_allclose(found, mean, atol=1e-3)
        assert sorted(member.name for member in item.members or []) == sorted(asked)
    assert early.usage.member_tokens < plain.usage.member_tokens
    assert early.usage.prompt_tokens == plain.usage.prompt_tokens


def test_an_uncertain_answer_abstains(service: Service, models: Models) -> None:
    with Choir(service.url) as choir:
        answer = choir.predict("careful", TEXTS, fusion={"abstain": {"risk": 0.02}})
    sure = [max(item.probabilities.values()) for item in answer.data]
    assert [item.abstained for item in answer.data] == [each == min(sure) for each in sure]
    assert all(item.label in LABELS for item in answer.data)


def test_greedy_tokens_equal_peft(service: Service, models: Models) -> None:
    from tests.serve import tiny

    prompt = TEMPLATE.format(text=TEXTS[1])
    for name in ("a", "b"):
        expected = tiny.Reference(models.base, models.adapters[name]).greedy(prompt, 24)
        body = {
            "model": f"replies/{name}",
            "prompt": prompt,
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = service.post("/v1/completions", body).json()
        assert answer["choices"][0]["token_ids"] == expected
