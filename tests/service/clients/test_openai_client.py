"""The `openai` client, unchanged."""

import json
from typing import Any

import openai
import pytest

from tests.serve.tool_calls import TOOL, WRITTEN, tight
from tests.service.models import Models
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


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("model", ["replies", "replies/a"])
def test_tools_are_called_by_a_server_with_the_setting(
    client: openai.OpenAI, models: Models, model: str, choice: str
) -> None:
    """Whole and streamed. A base of random weights is made to write a call, or left no other answer."""
    extra: dict[str, Any] = {"fusion": {"method": "average"}} if model == "replies" else {}
    given: dict[str, Any] = tight(models.base)
    if choice == "auto":
        extra["structured_outputs"] = {
            "choice": [WRITTEN]
        }  # and "auto" is what a client leaves out
    elif choice == "required":
        given["tool_choice"] = "required"
    else:
        given["tool_choice"] = {"type": "function", "function": {"name": "weather"}}
    arguments: dict[str, Any] = {
        "model": model,
        "messages": MESSAGES,
        "tools": [TOOL],
        "max_tokens": 120,
        "temperature": 0,
        "extra_body": extra,
        **given,
    }
    (whole,) = client.chat.completions.create(**arguments).choices
    (call,) = whole.message.tool_calls
    said = json.loads(call.function.arguments)
    assert call.function.name == "weather"
    assert said["city"] in ("Bern", "Basel")
    with client.chat.completions.stream(**arguments) as stream:
        pieces = [event for event in stream if event.type.startswith("tool_calls.function")]
        (streamed,) = stream.get_final_completion().choices
    (same,) = streamed.message.tool_calls
    assert (same.function.name, json.loads(same.function.arguments)) == ("weather", said)
    assert pieces, "the call comes in events"
    assert whole.finish_reason == streamed.finish_reason


def test_a_response_calls_a_tool(client: openai.OpenAI, models: Models) -> None:
    arguments: dict[str, Any] = {
        "model": "replies",
        "input": MESSAGES,
        "tools": [{"type": "function", **TOOL["function"]}],
        "tool_choice": "required",
        "max_output_tokens": 120,
        "temperature": 0,
        "extra_body": {"fusion": {"method": "average"}, **tight(models.base)},
    }
    (call,) = client.responses.create(**arguments).output
    assert (call.type, call.name) == ("function_call", "weather")
    with client.responses.stream(**arguments) as stream:
        (same,) = stream.until_done().get_final_response().output
    assert (same.name, json.loads(same.arguments)) == (call.name, json.loads(call.arguments))


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
