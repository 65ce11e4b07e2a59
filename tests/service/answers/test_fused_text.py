"""Text that all members write together, over HTTP, through the whole graph."""

import re

import openai
import pytest

from tests.serve.engine.fused import Judge, averaged, multiplied
from tests.service.models import Models
from tests.service.running import Service

pytestmark = pytest.mark.engine

MEMBERS = ("a", "b", "c")
PROMPT = "where is my card"
ANSWER = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def judge(models: Models) -> Judge:
    return Judge(models.base, {name: [models.adapters[name]] for name in MEMBERS})


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    ("fusion", "merge"),
    [
        ({"method": "average"}, averaged([1 / 3] * 3)),
        (
            {"method": "weighted_average", "weights": {"a": 0.5, "b": 0.3, "c": 0.2}},
            averaged([0.5, 0.3, 0.2]),
        ),
        (
            {"method": "product", "weights": {"a": 1.5, "b": -0.3, "c": 0.2}},
            multiplied([1.5, -0.3, 0.2]),
        ),
    ],
)
def test_an_answer_is_peft_merged_step_by_step(
    service: Service, judge: Judge, fusion: dict[str, object], merge: object
) -> None:
    body = {
        **ANSWER,
        "model": "replies",
        "logprobs": 3,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "fusion": {**fusion, "return_members": True},
    }
    response = service.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert [member["name"] for member in choice["members"]] == list(MEMBERS)
    judge.check(choice, [(name, PROMPT) for name in MEMBERS], merge)  # type: ignore[arg-type]


def test_usage_counts_the_users_tokens_once(service: Service) -> None:
    bodies = [{**ANSWER, "model": model} for model in ("replies/a", "replies")]
    bodies[1]["fusion"] = {"method": "average"}
    alone, fused = (service.post("/v1/completions", body).json()["usage"] for body in bodies)
    for count in ("prompt_tokens", "completion_tokens"):
        assert fused[count] == alone[count]
    assert fused["member_tokens"] == 3 * (alone["prompt_tokens"] + 12)


def test_chat_streams_token_by_token_and_equals_the_whole_answer(client: openai.OpenAI) -> None:
    arguments = {
        "model": "replies",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 12,
        "temperature": 0.9,
        "seed": 5,
        "extra_body": {"ignore_eos": True, "fusion": {"method": "average"}},
    }
    whole = client.chat.completions.create(**arguments)
    chunks = list(
        client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(1 for text in texts if text) > 3
    assert chunks[-1].usage.completion_tokens == 12
    assert re.fullmatch(r"replies@\d+", whole.model)


@pytest.mark.parametrize(
    ("fusion", "said"),
    [
        ({"method": "average", "weights": {"a": 1}}, "not for average"),
        ({"method": "weighted_average", "weights": {"a": 1}}, "'b' has no weight"),
        ({"method": "product", "plausibility": 2}, "plausibility"),
        ({"method": "stack"}, "stack"),
        ({"method": "average", "prompts": {"z": "x"}}, "z"),
    ],
)
def test_what_cannot_be_fused_is_a_sentence(
    service: Service, fusion: dict[str, object], said: str
) -> None:
    response = service.post("/v1/completions", {**ANSWER, "model": "replies", "fusion": fusion})
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]
