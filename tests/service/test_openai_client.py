"""The `openai` client, unchanged."""

import json

import openai
import pytest

from tests.service.running import Service

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "where is my card"}]


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"intents", "replies", "replies/a", "intents/b"} <= names
    assert any(name.startswith("replies@") for name in names)


def test_chat_with_one_member_streams_token_by_token(client: openai.OpenAI) -> None:
    arguments = {
        "model": "replies/a",
        "messages": MESSAGES,
        "max_tokens": 12,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
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


def test_an_ensemble_votes_and_streams_its_answer_whole(client: openai.OpenAI) -> None:
    arguments = {"model": "replies", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    fused = client.chat.completions.create(
        **arguments, extra_body={"fusion": {"method": "vote", "return_members": True}}
    )
    choice = fused.choices[0].model_dump()
    assert fused.model.startswith("replies@")
    assert [member["name"] for member in choice["members"]] == ["a", "b", "c"]
    assert choice["message"]["content"] in [member["text"] for member in choice["members"]]
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == [choice["message"]["content"]]


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="replies/b", prompt=["where", "how"], max_tokens=4, logprobs=2, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == 4


@pytest.mark.parametrize("model", ["replies/a", "replies"])
def test_responses(client: openai.OpenAI, model: str) -> None:
    body = {"fusion": {"method": "average"}} if model == "replies" else {}
    arguments = {
        "model": model,
        "input": MESSAGES,
        "max_output_tokens": 12,
        "temperature": 0,
        "extra_body": body,
    }
    whole = client.responses.create(**arguments)
    assert whole.model.startswith("replies@")
    assert whole.usage.output_tokens <= 12
    chat = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=12, temperature=0, extra_body=body
    )
    assert whole.output_text == chat.choices[0].message.content
    with client.responses.stream(**arguments) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text
    assert len(pieces) > 1, "it streams"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(**arguments, background=True)


def test_prompts_with_their_log_probabilities(client: openai.OpenAI) -> None:
    arguments = {"prompt": "where is my card", "max_tokens": 1, "logprobs": 1, "echo": True}
    body = {"fusion": {"method": "average"}}
    fused = client.completions.create(model="replies", **arguments, extra_body=body).choices[0]
    alone = client.completions.create(model="replies/a", **arguments).choices[0]
    assert fused.text.startswith("where is my card")
    assert fused.logprobs.tokens[:-1] == alone.logprobs.tokens[:-1]
    assert fused.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in fused.logprobs.token_logprobs[1:])


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"intent": {"type": "string", "enum": ["card", "transfer"]}},
        "required": ["intent"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="replies/a",
        messages=MESSAGES,
        max_tokens=120,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "intent", "schema": schema, "strict": True},
        },
    )
    assert json.loads(answer.choices[0].message.content)["intent"] in ("card", "transfer")


def test_structured_output_of_a_fused_answer(client: openai.OpenAI) -> None:
    """By a choice: a schema allows spaces, and random members may write nothing else."""
    answer = client.chat.completions.create(
        model="replies",
        messages=MESSAGES,
        extra_body={
            "fusion": {"method": "average"},
            "structured_outputs": {"choice": ["card", "transfer"]},
        },
    )
    assert answer.choices[0].message.content in ("card", "transfer")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "nobody"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
        ({"temperature": -1}, openai.BadRequestError),
        ({"n": 2}, openai.BadRequestError),
        ({"model": "intents"}, openai.BadRequestError),
    ],
)
def test_mistakes_raise_the_clients_own_exceptions(
    client: openai.OpenAI, change: dict[str, object], error: type[Exception]
) -> None:
    arguments = {"model": "replies", "messages": MESSAGES, "max_tokens": 3, **change}
    with pytest.raises(error):
        client.chat.completions.create(**arguments)
