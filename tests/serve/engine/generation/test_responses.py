"""`/v1/responses` in a real engine: what it answers, how it streams, and what it refuses."""

import json
from typing import Any

import pytest

from serve.engine.interface import GenerateCall
from serve.errors import Refusal
from tests.serve.engine.calls import ask
from tests.serve.engine.generation.test_token_routes import asked

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

TEXT = "where is my card"
BODY = {"input": TEXT, "max_output_tokens": 8, "temperature": 0}


async def events_of(engine: Any, body: dict[str, Any], **fields: Any) -> Any:
    """The events of a stream as pairs of their name and data, or the refusal."""
    call = GenerateCall("five@1", "responses", {**body, "stream": True}, "test", **fields)
    parts = [part async for part in engine.generate(call)]
    if isinstance(parts[0], Refusal):
        return parts[0]
    blocks = b"".join(parts).decode().strip().split("\n\n")
    pairs = [block.split("\n", 1) for block in blocks]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]


@pytest.mark.parametrize("fields", [{}, {"member": "c"}, {"method": "vote"}], ids=str)
async def test_a_response_says_what_a_chat_says(engine: Any, fields: dict[str, Any]) -> None:
    chat = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 8, "temperature": 0}
    said = (await ask(engine, chat, **fields))["choices"][0]["message"]["content"]
    whole = await asked(engine, "responses", BODY, **fields)
    assert (whole["object"], whole["status"]) == ("response", "incomplete"), whole
    (message,) = whole["output"]
    assert message["content"][0]["text"] == said
    assert whole["model"] == "five@1" + ("/c" if "member" in fields else "")
    assert whole["usage"]["output_tokens"] == 8
    if "member" not in fields:
        prompt = whole["usage"]["input_tokens"]
        assert whole["usage"]["member_tokens"] == 5 * (prompt + 8)

    events = await events_of(engine, BODY, **fields)
    names = [name for name, _ in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    deltas = [data["delta"] for name, data in events if name == "response.output_text.delta"]
    assert "".join(deltas) == said
    assert len(deltas) > 1 or fields.get("method") == "vote", "it streams"
    last = events[-1][1]["response"]
    assert last["usage"] == whole["usage"]
    assert last["model"] == whole["model"]


async def test_a_conversation_and_instructions_are_read(engine: Any) -> None:
    turns = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": [{"type": "input_text", "text": "C"}]},
    ]
    chat = {
        "messages": [
            {"role": "system", "content": "D"},
            *turns[:2],
            {"role": "user", "content": "C"},
        ],
        "max_tokens": 6,
        "temperature": 0,
    }
    body = {"input": turns, "instructions": "D", "max_output_tokens": 6, "temperature": 0}
    whole = await asked(engine, "responses", body)
    said = (await ask(engine, chat))["choices"][0]["message"]["content"]
    assert whole["output"][0]["content"][0]["text"] == said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "keeps no responses"),
        ({"input": None}, "input"),
        ({"input": "card " * 20_000}, "characters"),
        ({"input": [{"role": "user", "content": "card " * 20_000}]}, "characters"),
        ({"input": [{"role": "user", "content": [{"type": "prompt_embeds"}]}]}, "Embeddings"),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "http://a/b.png"}],
                    }
                ]
            },
            "data URL",
        ),
        ({"max_output_tokens": 250}, "max_"),
        ({"input": "card " * 150, "max_output_tokens": 80}, "KV cache"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 90}, "logprobs"),
        ({"tool_choice": "required"}, "tool"),
    ],
    ids=lambda each: str(each)[:40],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_what_cannot_be_answered_is_refused(
    engine: Any, change: dict[str, Any], words: str, streaming: bool
) -> None:
    body = {**BODY, **change}
    refusal = await (events_of(engine, body) if streaming else asked(engine, "responses", body))
    assert isinstance(refusal, Refusal), refusal
    assert refusal.status == 400
    assert words in refusal.message
