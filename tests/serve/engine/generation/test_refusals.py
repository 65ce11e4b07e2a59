"""What a call asks for that no base can do, told without an engine."""

from typing import Any

import pytest

from serve.engine.generation.refusals import generation_refusal, in_choirs_words
from serve.engine.interface import GenerateCall, Route
from tests.serve.engine.calls import version
from tests.serve.images.hostile import picture, url_of

URL = url_of(picture())


def part(route: Route, detail: Any) -> dict[str, Any]:
    """An image of a chat, or of /v1/responses."""
    if route == "responses":
        return {"type": "input_image", "image_url": URL, **detail}
    return {"type": "image_url", "image_url": {"url": URL, **detail}}


@pytest.mark.parametrize("route", ["chat", "responses", "tokenize"])
@pytest.mark.parametrize(
    ("detail", "taken"),
    [({}, True), ("auto", True), (None, True), ("low", False), ("high", False), (["auto"], False)],
)
def test_the_detail_of_an_image_is_the_processors(route: Route, detail: Any, taken: bool) -> None:
    """vLLM ignores it."""
    given = part(route, detail if detail == {} else {"detail": detail})
    name = "input" if route == "responses" else "messages"
    body = {name: [{"role": "user", "content": [given, {"type": "text", "text": "look"}]}]}
    ensemble = version({}, "talk", {"a": None}, task="generation", labels=None).ensemble
    refusal = generation_refusal(ensemble, GenerateCall("talk@1", route, body, "r"))
    if taken:
        assert refusal is None
        return
    assert refusal is not None
    assert (refusal.status, refusal.param) == (400, name)
    assert "'detail' of an image" in refusal.message
    assert refusal.message.endswith(".")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid "
            "integer, unable to parse string as an integer', 'input': 'many'}",
            "'max_tokens': Input should be a valid integer, unable to parse string as an integer.",
        ),
        (
            "2 validation errors:\n  {'type': 'value_error', 'loc': 'body', 'msg': \"Value error, it's wrong.\", "
            "'input': 1}\n  {'type': 'x', 'loc': 'body.n', 'msg': 'y'}",
            "'body': it's wrong.",
        ),
        ("At most 1 image may be provided.", "At most 1 image may be provided."),
        ("/models/base is not a multimodal model", "This base reads no images: leave them out."),
    ],
)
def test_refusals_of_vllm_are_sentences(given: str, said: str) -> None:
    assert in_choirs_words(given) == said
