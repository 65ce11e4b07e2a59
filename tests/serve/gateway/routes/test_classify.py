"""`POST /classify` with a faked engine: the call that the engine gets, and the document in vLLM's shape."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from serve.engine.interface import PredictCall, Prediction, Text
from serve.errors import Refusal
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import LABELS, desired, ensemble, held, prediction


async def classify(gateway: Gateway, **fields: Any) -> httpx.Response:
    return await gateway.http.post("/classify", json={"model": "intents", "input": "x"} | fields)


async def test_the_answer_has_the_fields_of_vllm(gateway: Gateway) -> None:
    response = await gateway.http.post(
        "/classify",
        json={"model": "intents", "input": ["where is my card?", "top up"]},
        headers={"x-request-id": "r7"},
    )
    assert response.status_code == 200
    assert response.headers["x-choir-model"] == "intents@3"
    document = response.json()
    first, second = document.pop("data")
    assert document.pop("created") > 1_700_000_000
    assert document == {
        "id": "classify-r7",
        "object": "list",
        "model": "intents@3",
        "usage": {
            "prompt_tokens": 7,
            "total_tokens": 7,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }
    assert first == {
        "index": 0,
        "label": "card_lost",
        "probs": pytest.approx([0.45, 0.35, 0.2]),
        "num_classes": 3,
    }
    assert second["index"] == 1


async def test_a_member_is_asked_alone(gateway: Gateway) -> None:
    response = await classify(gateway, model="intents@2/a")
    assert response.json()["model"] == "intents@2/a"
    (call,) = gateway.engines.calls
    assert isinstance(call, PredictCall)
    assert (call.version, call.member, call.inputs) == ("intents@2", "a", (Text("x"),))


async def test_an_answer_that_abstains_says_so(gateway: Gateway) -> None:
    def abstaining(call: PredictCall) -> Prediction:
        return replace(prediction(call), abstained=np.array([True]))

    gateway.engines.prediction = abstaining
    (row,) = (await classify(gateway)).json()["data"]
    assert row["abstained"] is True


@pytest.mark.parametrize(
    ("task", "route"),
    [
        ("generation", "/v1/chat/completions"),
        ("multilabel", "/v1/predict"),
        ("regression", "/v1/predict"),
    ],
)
async def test_other_tasks_are_told_their_route(start: Start, task: str, route: str) -> None:
    other = ensemble("other", 1)
    fusion = other.fusion.model_copy(update={"method": "average"})
    labels = list(LABELS) if task == "multilabel" else None
    changed = {"task": task, "labels": labels, "fusion": fusion}
    gateway = await start(desired(held(other.model_copy(update=changed))))
    assert route in refused(await classify(gateway, model="other"), 400, task)["message"]
    assert gateway.engines.calls == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, "empty"),
        ({"input": [[1, 2]]}, "must be a text"),
        ({"input": ["x"] * 5}, "5 inputs"),
        ({"model": None}, "model"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"use_activation": False}, "use_activation"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"cache_salt": "s"}, "cache_salt"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    start: Start, fields: dict[str, Any], words: str
) -> None:
    gateway = await start(max_inputs=4)
    refused(await classify(gateway, **fields), 400, words)
    assert gateway.engines.calls == []


async def test_fields_at_vllms_defaults_and_unknown_ones_are_taken(gateway: Gateway) -> None:
    fields = {"priority": 0, "use_activation": True, "user": "ann", "request_id": "a", "colour": 1}
    assert (await classify(gateway, **fields)).status_code == 200


async def test_it_is_limited_and_guarded_as_predictions_are(start: Start) -> None:
    gateway = await start(inference_tokens=["secret"])
    refused(await classify(gateway), 401)
    late = await gateway.http.post(
        "/classify",
        json={"model": "intents", "input": "x"},
        headers={"authorization": "Bearer secret", "x-request-timeout": "0"},
    )
    refused(late, 400, "timeout")
    refused(
        await gateway.http.post(
            "/classify",
            json={"model": "nobody", "input": "x"},
            headers={"authorization": "Bearer secret"},
        ),
        404,
    )


async def test_a_full_gateway_refuses_it(start: Start) -> None:
    gateway = await start(max_in_flight=1)
    gateway.engines.stuck = asyncio.Event()
    first = asyncio.create_task(classify(gateway))
    await gateway.engines.stuck.wait()
    full = await classify(gateway)
    refused(full, 429)
    assert "retry-after" in full.headers
    first.cancel()


async def test_a_refusal_of_the_engine_reaches_the_client(gateway: Gateway) -> None:
    gateway.engines.refusal = Refusal(400, "A text is too long.", param="input")
    refused(await classify(gateway), 400, "too long")
