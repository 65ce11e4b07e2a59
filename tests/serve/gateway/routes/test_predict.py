"""`POST /v1/predict` with a faked engine: the call that the engine gets, and the document of the answer."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from serve.engine.interface import PredictCall, Prediction, Text
from serve.errors import Refusal
from serve.fusion.fused import FusedSets, FusedValues
from serve.gateway.dispatch import dispatch
from serve.gateway.http.schemas import PredictAnswer
from serve.gateway.links import Unavailable
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import DIGESTS, LABELS, desired, ensemble, held, listening


def only_call(gateway: Gateway) -> PredictCall:
    (call,) = gateway.engines.calls
    assert isinstance(call, PredictCall)
    return call


async def test_the_answer_follows_the_contract(gateway: Gateway) -> None:
    response = await gateway.predict(input=["where is my card?", "top up"], return_members=True)
    assert response.status_code == 200
    assert response.headers["x-choir-model"] == "intents@3"
    answer = response.json()
    first, second = answer.pop("data")
    assert answer == {
        "object": "list",
        "model": "intents@3",
        "usage": {"prompt_tokens": 7, "member_tokens": 21, "computed_tokens": 12},
    }
    members = first.pop("members")
    assert first == {
        "index": 0,
        "label": "card_lost",
        "probabilities": pytest.approx({"card_lost": 0.45, "card_late": 0.35, "top_up": 0.2}),
        "entropy": 0.5,
        "disagreement": 0.1,
    }
    assert members == [
        {
            "name": "a",
            "adapters": [{"adapter": "intents-a", "digest": DIGESTS["a"]}],
            "label": "card_lost",
            "probabilities": {"card_lost": 0.8, "card_late": 0.1, "top_up": 0.1},
        },
        {
            "name": "b",
            "adapters": [{"adapter": "intents-b", "digest": DIGESTS["b"]}],
            "label": "card_late",
            "probabilities": {"card_lost": 0.1, "card_late": 0.6, "top_up": 0.3},
        },
    ]
    assert (second["index"], second["entropy"], second["disagreement"]) == (1, 0.6, 0.2)
    assert second["members"][0]["probabilities"]["card_lost"] == pytest.approx(0.7999)
    assert second["members"][1]["probabilities"]["card_late"] == pytest.approx(0.5999)


async def test_the_schema_describes_the_answer(gateway: Gateway) -> None:
    response = await gateway.predict(return_members=True)
    PredictAnswer.model_validate_json(response.content, extra="forbid")


def sets(call: PredictCall) -> Prediction:
    """Return a multilabel prediction: two labels fused, none by member a, all three by member b."""
    members = tuple(ensemble().members)

    def of(probabilities: list[float]) -> FusedSets:
        rows = np.array([probabilities] * len(call.inputs))
        return FusedSets(rows, np.array([0.7]), np.array([0.2]), rows >= 0.5)

    alone = (of([0.4, 0.1, 0.2]), of([0.9, 0.9, 0.9]))
    return Prediction("intents@3", LABELS, of([0.65, 0.5, 0.49]), members, alone, 7, 14)


def values(call: PredictCall) -> Prediction:
    members = tuple(ensemble().members)
    alone = tuple(FusedValues(np.array([value]), np.zeros(1)) for value in (1.0, 3.0))
    return Prediction(
        "intents@3", (), FusedValues(np.array([2.0]), np.array([1.0])), members, alone, 7, 14
    )


async def test_the_answer_to_multilabel(gateway: Gateway) -> None:
    gateway.engines.prediction = sets
    response = await gateway.predict(return_members=True)
    PredictAnswer.model_validate_json(response.content, extra="forbid")
    (row,) = response.json()["data"]
    members = row.pop("members")
    assert row == {
        "index": 0,
        "labels": ["card_lost", "card_late"],
        "probabilities": {"card_lost": 0.65, "card_late": 0.5, "top_up": 0.49},
        "entropy": 0.7,
        "disagreement": 0.2,
    }
    assert [member["labels"] for member in members] == [[], list(LABELS)]
    assert set(members[0]) == {"name", "adapters", "labels", "probabilities"}


async def test_the_answer_to_regression(gateway: Gateway) -> None:
    gateway.engines.prediction = values
    response = await gateway.predict(return_members=True)
    PredictAnswer.model_validate_json(response.content, extra="forbid")
    (row,) = response.json()["data"]
    members = row.pop("members")
    assert row == {"index": 0, "value": 2.0, "std": 1.0}
    assert [member["value"] for member in members] == [1.0, 3.0]
    assert set(members[0]) == {"name", "adapters", "value"}


async def test_members_only_when_asked_for(gateway: Gateway) -> None:
    (row,) = (await gateway.predict()).json()["data"]
    assert "members" not in row
    assert set(row["probabilities"]) == set(LABELS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", (Text("a"),)),
        (" ", (Text(" "),)),
        ({"text": "a"}, (Text("a"),)),
        ({"text": "a", "text_pair": "b"}, (Text("a", "b"),)),
        (["a", {"text": "b", "text_pair": None}], (Text("a"), Text("b"))),
        (["x"] * 1024, (Text("x"),) * 1024),
        ({"image": "data:,"}, (Text("", image="data:,"),)),
        (["a", {"image": "data:,"}], (Text("a"), Text("", image="data:,"))),
        ({"image": "data:,", "text": "a"}, (Text("a", image="data:,"),)),
    ],
)
async def test_forms_of_input(gateway: Gateway, given: Any, expected: tuple[Text, ...]) -> None:
    assert (await gateway.predict(input=given)).status_code == 200
    assert only_call(gateway).inputs == expected


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "input[1]"),
        ({"input": ["a", 7]}, "input", "input[1]"),
        ({"input": ["a", ["b"]]}, "input", "a list"),
        ({"input": 7}, "input", "a number"),
        ({"input": None}, "input", "null"),
        ({"input": {}}, "input", "input.text"),
        ({"input": {"text": "a", "text_pair": ""}}, "input", "text_pair"),
        ({"input": {"text": "a", "txet": "b"}}, "input", "txet"),
        ({"input": {"text": "", "image": "data:,"}}, "input", "input.text: the text is empty"),
        (
            {"input": {"text": "a", "text_pair": "b", "image": "data:,"}},
            "input",
            "input: an image stands alone or with one text",
        ),
        ({"input": ["a", {"image": ""}]}, "input", "input[1].image"),
        ({"input": {"image": 7}}, "input", "input.image: must be a text"),
        ({"input": ["x"] * 1025}, "input", "1,025"),
        ({"model": 3}, "model", "model"),
        ({"colour": 1}, "colour", "colour"),
        ({"return_members": "yes"}, "return_members", "return_members"),
        ({"fusion": {"method": "sum"}}, "fusion", "average"),
        ({"fusion": {"method": "product"}}, "fusion", "'stack' or 'gate'"),
        ({"fusion": {"method": "mbr"}}, "fusion", "'stack' or 'gate'"),
        ({"fusion": {"weights": {"a": "1"}}}, "fusion", "weights"),
        ({"fusion": {"weights": {"a": -1}}}, "fusion", "fusion.weights.a"),
        ({"fusion": {"weights": {}}}, "fusion", "weights"),
        ({"fusion": {"return_members": True}}, "fusion", "return_members"),
        ({"fusion": "vote"}, "fusion", "fusion"),
    ],
)
async def test_an_error_names_the_wrong_field(
    gateway: Gateway, fields: dict[str, Any], param: str, words: str
) -> None:
    error = refused(await gateway.predict(**fields), 400, words)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert gateway.engines.calls == []


async def test_required_fields(gateway: Gateway) -> None:
    refused(await gateway.http.post("/v1/predict", json={"model": "intents"}), 400, "input")
    refused(await gateway.http.post("/v1/predict", json={"input": "x"}), 400, "model")


async def test_the_request_reaches_the_engine(gateway: Gateway) -> None:
    await gateway.http.post(
        "/v1/predict",
        json={
            "model": "intents",
            "input": "x",
            "fusion": {"method": "vote", "weights": {"a": 2, "b": 0.5}},
        },
        headers={"x-request-id": "mine", "traceparent": "00-1-2-01", "tracestate": "v=1"},
    )
    assert only_call(gateway) == PredictCall(
        version="intents@3",
        inputs=(Text("x"),),
        request_id="mine",
        method="vote",
        weights={"a": 2, "b": 0.5},
        trace_headers={"traceparent": "00-1-2-01", "tracestate": "v=1"},
    )


@pytest.mark.parametrize(
    ("model", "version", "member", "answered"),
    [
        ("intents", "intents@3", None, "intents@3"),
        ("intents@2", "intents@2", None, "intents@2"),
        ("intents/b", "intents@3", "b", "intents@3/b"),
    ],
)
async def test_names_of_models(
    gateway: Gateway, model: str, version: str, member: str | None, answered: str
) -> None:
    response = await gateway.predict(model=model)
    assert (only_call(gateway).version, only_call(gateway).member) == (version, member)
    assert response.json()["model"] == response.headers["x-choir-model"] == answered


@pytest.mark.parametrize("model", ["nobody", "intents@9", "intents/z", "", "intents@", "a/b/c"])
async def test_unknown_models(gateway: Gateway, model: str) -> None:
    response = await gateway.predict(model=model)
    error = refused(response, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "x-choir-model" not in response.headers


async def test_a_refusal_of_the_engine_reaches_the_client(gateway: Gateway) -> None:
    gateway.engines.refusal = Refusal(400, "Too long.", code="too_long", param="input")
    error = refused(await gateway.predict(), 400, "Too long.")
    assert error == {
        "message": "Too long.",
        "type": "invalid_request_error",
        "param": "input",
        "code": "too_long",
    }


async def test_a_version_that_a_swap_unloaded_is_resolved_once_more(gateway: Gateway) -> None:
    gateway.engines.loaded = {"intents@4"}
    gateway.controller.will_say(desired(held(ensemble(version=4))))
    response = await gateway.predict()
    assert response.json()["model"] == response.headers["x-choir-model"] == "intents@4"
    assert [call.version for call in gateway.engines.calls] == ["intents@3", "intents@4"]


async def test_a_version_that_no_engine_has_is_a_503_after_several_attempts(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.0, 0.0))
    gateway.engines.loaded = set()
    response = await gateway.predict()
    refused(response, 503, "intents@3")
    assert response.headers["retry-after"] == "1"
    assert len(gateway.engines.calls) == 3


async def test_requests_wait_for_an_engine_that_is_catching_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.0, 0.0))
    gateway.engines.lacking = 2
    assert (await gateway.predict()).status_code == 200
    assert len(gateway.engines.calls) == 3


async def test_a_pinned_version_that_is_gone_is_a_404(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.0,))
    gateway.engines.loaded = {"intents@3"}
    error = refused(await gateway.predict(model="intents@2"), 404, "intents@2")
    assert error["code"] == "model_not_found"
    gateway.controller.will_say(desired(held(ensemble(version=3))))
    refused(await gateway.predict(model="intents@2"), 404, "intents@3")


async def test_requests_are_a_503_before_the_gateway_knows_a_version(start: Start) -> None:
    response = await (await start(desired())).predict()
    refused(response, 503, "starting")
    assert response.headers["retry-after"] == "1"


async def test_another_engine_answers_when_one_dies(gateway: Gateway) -> None:
    gateway.engines.errors = [Unavailable("The engine died.")]
    assert (await gateway.predict()).status_code == 200
    first, second = gateway.engines.calls
    assert first == second


async def test_an_engine_that_cannot_be_reached_is_a_503(gateway: Gateway) -> None:
    gateway.engines.error = Unavailable("No engine is running.")
    refused(await gateway.predict(), 503, "No engine is running.")


async def test_an_engine_that_does_not_answer_in_time_is_a_503(start: Start) -> None:
    gateway = await start(request_timeout_seconds=0.5)
    gateway.engines.stuck = asyncio.Event()
    error = refused(await gateway.predict(), 503, "0.5 seconds")
    assert error["code"] == "timeout"
    assert gateway.engines.ended.is_set(), "its work must end with the request"


async def test_without_a_ready_engine_the_wait_is_short(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "UNREADY_SECONDS", 0.05)
    gateway = await start(desired(held(ensemble()), ready_engines=0))
    assert (await gateway.predict()).status_code == 200, "a restarting controller stops no answer"
    gateway.engines.stuck = asyncio.Event()
    refused(await gateway.predict(), 503)


async def test_a_client_that_leaves_ends_the_engines_work(gateway: Gateway) -> None:
    gateway.engines.stuck = asyncio.Event()
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        asking = asyncio.create_task(
            client.post(f"{url}/v1/predict", json={"model": "intents", "input": "x"})
        )
        await gateway.engines.stuck.wait()
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.wait_for(gateway.engines.ended.wait(), 10)
