"""`POST /v1/embeddings` with a faked engine: the call that the engine gets, and the document in OpenAI's shape."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from serve.engine.interface import EmbedCall
from tests.serve.gateway.conftest import Gateway, Start, refused

PATH = "/v1/embeddings"


async def embed(gateway: Gateway, **fields: Any) -> httpx.Response:
    return await gateway.http.post(PATH, json={"model": "intents", "input": "x"} | fields)


def only_call(gateway: Gateway) -> EmbedCall:
    (call,) = gateway.engines.calls
    assert isinstance(call, EmbedCall)
    return call


async def test_the_answer_has_the_fields_of_openai(gateway: Gateway) -> None:
    response = await embed(gateway, input=["one", "two"])
    assert response.status_code == 200, response.text
    document = response.json()
    assert document.pop("id").startswith("embd-")
    assert document.pop("created") > 1_700_000_000
    assert document == {
        "object": "list",
        "model": "intents@3",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.5]},
        ],
        "usage": {
            "prompt_tokens": 7,
            "total_tokens": 7,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }
    call = only_call(gateway)
    assert (call.version, call.member, call.normalize) == ("intents@3", None, True)


async def test_base64_holds_the_same_numbers(gateway: Gateway) -> None:
    response = await embed(gateway, input=["one", "two"], encoding_format="base64")
    found = [base64.b64decode(each["embedding"]) for each in response.json()["data"]]
    vectors = [np.frombuffer(each, dtype="<f4").tolist() for each in found]
    assert vectors == [[0.0, 0.5], [1.0, 0.5]]


async def test_a_members_raw_vectors(gateway: Gateway) -> None:
    response = await embed(gateway, model="intents/b", use_activation=False)
    assert response.json()["model"] == "intents@3/b"
    call = only_call(gateway)
    assert (call.member, call.normalize) == ("b", False)


@pytest.mark.parametrize(
    ("given", "taken"),
    [("x", ("x",)), (["x"], ("x",)), ([5, 6], ((5, 6),)), ([[5], [6, 7]], ((5,), (6, 7)))],
)
async def test_inputs_are_texts_or_tokens(gateway: Gateway, given: Any, taken: Any) -> None:
    assert (await embed(gateway, input=given)).status_code == 200
    assert only_call(gateway).inputs == taken


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, "empty list"),
        ({"input": ""}, "empty"),
        ({"input": [""]}, "input[0]"),
        ({"input": {"text": "x"}}, "not an object"),
        ({"input": ["x", 5]}, "input[1]"),
        ({"input": [[5], "x"]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [-1]}, "from 0 on"),
        ({"input": ["x"] * 5}, "5 inputs"),
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    start: Start, fields: dict[str, Any], words: str
) -> None:
    gateway = await start(max_inputs=4)
    refused(await embed(gateway, **fields), 400, words)
    assert gateway.engines.calls == []


async def test_it_is_guarded_as_predictions_are(start: Start) -> None:
    gateway = await start(inference_tokens=["secret"])
    refused(await embed(gateway), 401)


async def test_an_unknown_model(gateway: Gateway) -> None:
    refused(await embed(gateway, model="nobody"), 404, "nobody")
