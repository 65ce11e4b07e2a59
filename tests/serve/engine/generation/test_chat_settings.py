"""The settings of chats in a real engine: tools, reasoning and templates, of members and of fused ensembles."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.base.side_files import read_tokenizer
from serve.config.chat import ChatSettings
from serve.engine.generation.openai_routes import OpenAIRoutes
from serve.engine.generation.serving_arguments import serving_arguments
from serve.errors import Refusal
from serve.images.limits import ImageLimits
from tests.serve.engine.calls import ask, stream
from tests.serve.engine.generation.test_token_routes import asked
from tests.serve.tool_calls import TOOL, WRITTEN, tight

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

Chat = Callable[..., Awaitable[None]]

ASKED = {
    "messages": [{"role": "user", "content": "A B"}],
    "tools": [TOOL],
    "max_tokens": 120,
    "temperature": 0,
}


@pytest_asyncio.fixture(loop_scope="session")
async def chat(
    engine: Any, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Chat]:
    """`await chat(**settings)` gives the session's engine other settings of chats."""

    async def settled(**settings: Any) -> None:
        base = str(models["base"])
        args = serving_arguments(base, ChatSettings(**settings).model_dump())
        tokenizer = read_tokenizer(base, None)
        routes = await OpenAIRoutes.create(engine._llm, args, tokenizer, ImageLimits())
        monkeypatch.setattr(engine, "_openai", routes)

    yield settled


def called(choice: Any) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"]["tool_calls"]
    ]


def streamed(events: Any) -> tuple[list[tuple[str, Any]], str, str | None]:
    """The calls, the content, and the reason of the end, joined from a stream's pieces."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, reason = "", None
    for event in events:
        for choice in event["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            reason = choice["finish_reason"] or reason
            for call in delta.get("tool_calls") or ():
                function = call["function"]
                names[call["index"]] = names.get(call["index"], "") + (function.get("name") or "")
                arguments[call["index"]] = arguments.get(call["index"], "") + (
                    function.get("arguments") or ""
                )
    calls = [(names[index], json.loads(arguments[index])) for index in sorted(names)]
    return calls, content, reason


@pytest.mark.parametrize("member", [None, "b"], ids=["fused", "member"])
async def test_a_tool_call_that_the_base_writes_is_read(
    engine: Any, chat: Chat, member: str | None
) -> None:
    """The tiny base is made to write a call as Hermes does; to call or not is left to it."""
    await chat(enable_auto_tool_choice=True, tool_call_parser="hermes")
    body = {**ASKED, "structured_outputs": {"choice": [WRITTEN]}}
    (choice,) = (await ask(engine, body, member=member))["choices"]
    assert called(choice) == [("weather", {"city": "Bern"})]
    assert choice["finish_reason"] == "tool_calls"
    assert not choice["message"]["content"]
    events = await stream(engine, body, member=member)
    calls, content, reason = streamed(events)
    assert calls == [("weather", {"city": "Bern"})]
    assert (content.strip(), reason) == ("", "tool_calls")
    assert sum(bool(e["choices"][0]["delta"].get("tool_calls")) for e in events) > 2, "it streams"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str
)
async def test_a_fused_ensemble_must_call_the_tool_that_a_client_asks_for(
    engine: Any, chat: Chat, models: dict[str, Path], choice: Any
) -> None:
    await chat(enable_auto_tool_choice=True, tool_call_parser="hermes")
    body = {**ASKED, "tool_choice": choice, **tight(models["base"])}
    (whole,) = (await ask(engine, body))["choices"]
    calls, _, _ = streamed(await stream(engine, body))
    assert calls == called(whole)
    assert calls in ([("weather", {"city": city})] for city in ("Bern", "Basel"))


READS = "chat: {enable_auto_tool_choice: true, tool_call_parser: NAME}"
WHERE = "in the file of --config, or as JSON in CHOIR_CHAT"
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, (READS, WHERE)),
        ({"tool_choice": "required"}, (READS, WHERE)),
        ({"tool_choice": NAMED, "stream": True}, (READS, WHERE)),
        ({"tools": None, "chat_template": "{{ 1 }}"}, ("chat: {chat_template: FILE}", WHERE)),
        ({"tools": None, "thinking_token_budget": 4}, ("'thinking_token_budget'", "Leave it out")),
    ],
    ids=str,
)
async def test_what_a_setting_would_allow_is_refused_with_that_setting(
    engine: Any, chat: Chat, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    """vLLM names flags of its own server, which `choir serve` does not have."""
    await chat()
    refusal = await ask(engine, ASKED | change, member="a")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert all(word in refusal.message for word in words), refusal.message
    assert not re.search(r"--(?!config)", refusal.message), refusal.message


async def test_a_fused_response_calls_it_too(
    engine: Any, chat: Chat, models: dict[str, Path]
) -> None:
    await chat(enable_auto_tool_choice=True, tool_call_parser="hermes")
    body = {"input": "A B", "tools": [{"type": "function", **TOOL["function"]}], "temperature": 0}
    body |= {"tool_choice": "required", "max_output_tokens": 120, **tight(models["base"])}
    (call,) = (await asked(engine, "responses", body))["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"])["city"] in ("Bern", "Basel")


async def test_reasoning_is_told_apart_from_the_content(engine: Any, chat: Chat) -> None:
    await chat(reasoning_parser="granite")
    text = "Here is my thought process: A B Here is my response: C D"
    body = {
        "messages": ASKED["messages"],
        "max_tokens": 120,
        "structured_outputs": {"choice": [text]},
    }
    message = (await ask(engine, body))["choices"][0]["message"]
    assert message["reasoning"].strip() == "A B"
    assert message["content"].strip() == "C D"


async def test_a_template_and_its_variables_are_those_of_the_settings(
    engine: Any, chat: Chat, tmp_path: Path, models: dict[str, Path]
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ greeting }} {{ messages[0]['content'][0]['text'] }}")
    await chat(
        chat_template=str(file),
        chat_template_content_format="openai",
        default_chat_template_kwargs={"greeting": "please"},
    )
    file.unlink()
    tokenizer = read_tokenizer(str(models["base"]), None)
    body = {"messages": [{"role": "user", "content": "cancel"}], "max_tokens": 1}
    for given, text in (({}, "please cancel"), ({"greeting": "I"}, "I cancel")):
        answer = await ask(engine, {**body, "chat_template_kwargs": given, "prompt_logprobs": 0})
        ids = [int(next(iter(each))) for each in answer["prompt_logprobs"][1:]]
        assert ids == tokenizer(text)["input_ids"][1:]
