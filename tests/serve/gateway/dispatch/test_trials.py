"""Shadows and canaries: which version answers, which requests are mirrored, and what is counted."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from serve.engine.interface import GenerateCall, PredictCall, Prediction
from serve.errors import Refusal
from serve.gateway.dispatch import dispatch
from serve.gateway.dispatch.mirror import LARGEST_BODY
from serve.gateway.links import Unavailable
from serve.manifest import Ensemble
from serve.protocol.figures import Figures, Tally
from serve.protocol.messages import AssignedVersion, Desired
from serve.protocol.strategy import Strategy
from tests.serve.fakes import until
from tests.serve.gateway.conftest import Gateway, Start, refused
from tests.serve.gateway.fakes import desired, ensemble, held, listening, prediction
from tests.serve.gateway.http.test_observe import counted, samples, series

CHAT = "/v1/chat/completions"
GREEDY = {"model": "replies", "messages": [], "temperature": 0}


def trying(
    kind: str = "canary",
    share: float = 0.5,
    *,
    task: str = "classification",
    change: dict[str, Any] | None = None,
    **gates: Any,
) -> Desired:
    """Return a state with version 3 active and version 4 on trial."""
    name = "intents" if task == "classification" else "replies"
    strategy = Strategy.model_validate({"kind": kind, "share": share, "gates": gates})
    candidate = held(ensemble(name, 4, task), "candidate")
    if change:
        changed = candidate.version.ensemble.model_dump() | change
        version = replace(candidate.version, ensemble=Ensemble.model_validate(changed))
        candidate = replace(candidate, version=version)
    return desired(held(ensemble(name, 3, task)), replace(candidate, attempt="r1", trial=strategy))


def figures(gateway: Gateway) -> Figures:
    return gateway.agent.ledger.figures()["r1"]


def versions(gateway: Gateway) -> Counter[str]:
    return Counter(call.version for call in gateway.engines.calls)


def hold_back(gateway: Gateway) -> asyncio.Event:
    """Let the candidate answer only once the event is set."""
    release = asyncio.Event()
    answer = gateway.engines.predict

    async def slow(call: PredictCall) -> Prediction | Refusal:
        if call.version == "intents@4":
            await release.wait()
        return await answer(call)

    gateway.engines.predict = slow  # type: ignore[method-assign]
    return release


async def test_a_canary_answers_its_share_of_the_requests(start: Start) -> None:
    gateway = await start(trying(share=0.25))
    before = samples()
    for _ in range(400):
        assert (await gateway.predict()).status_code == 200
    asked = versions(gateway)
    assert 50 < asked["intents@4"] < 150
    assert asked["intents@3"] + asked["intents@4"] == 400
    counts = figures(gateway)
    assert counts.candidate.requests == asked["intents@4"]
    assert counts.stable.requests == asked["intents@3"]
    assert (counts.candidate.errors, counts.compared, counts.dropped) == (0, 0, 0)
    labels = {"ensemble": "intents", "route": "/v1/predict", "status": "200"}
    assert counted(before, "choir_requests_total") == {
        series(**labels, track="canary"): asked["intents@4"],
        series(**labels, track="stable"): asked["intents@3"],
    }


async def test_a_whole_answer_names_the_version_that_gave_it(start: Start) -> None:
    gateway = await start(trying(share=1))
    response = await gateway.predict(model="intents/b")
    assert response.json()["model"] == response.headers["x-choir-model"] == "intents@4/b"


@pytest.mark.parametrize("model", ["intents@3", "intents@4", "intents@3/a"])
async def test_pinned_requests_take_no_part_in_a_trial(start: Start, model: str) -> None:
    gateway = await start(trying(share=1))
    response = await gateway.predict(model=model)
    assert response.json()["model"] == model
    assert figures(gateway) == Figures()


async def test_a_member_that_the_candidate_lacks_is_answered_by_the_active_version(
    start: Start,
) -> None:
    members = ensemble().model_dump()["members"][:1]
    gateway = await start(trying(share=1, change={"members": members}))
    answers = [await gateway.predict(model=f"intents/{name}") for name in "ab"]
    assert [each.json()["model"] for each in answers] == ["intents@4/a", "intents@3/b"]


async def test_the_same_key_gets_the_same_version_on_every_gateway(start: Start) -> None:
    gateways = [await start(trying()), await start(trying())]
    answered: dict[str, set[str]] = {}
    for turn in range(60):
        key = f"customer {turn % 20}"
        for gateway in gateways:
            response = await gateway.http.post(
                "/v1/predict",
                json={"model": "intents", "input": "x"},
                headers={"x-choir-sticky": key},
            )
            answered.setdefault(key, set()).add(response.json()["model"])
    assert all(len(models) == 1 for models in answered.values())
    assert set.union(*answered.values()) == {"intents@3", "intents@4"}


async def test_the_openai_user_is_sticky_unless_the_header_is_given(start: Start) -> None:
    gateway = await start(trying(task="generation"))

    async def version(user: str, **headers: str) -> str:
        body = {"model": "replies", "messages": [], "user": user}
        response = await gateway.http.post(CHAT, json=body, headers=headers)
        return response.headers["x-choir-model"]

    by_user = {user: await version(user) for user in map(str, range(20))}
    assert set(by_user.values()) == {"replies@3", "replies@4"}
    assert by_user == {user: await version(user) for user in by_user}
    sticky = {await version(user, **{"x-choir-sticky": "one"}) for user in by_user}
    assert len(sticky) == 1


async def test_an_error_of_the_candidate_reaches_the_client_and_is_counted(start: Start) -> None:
    gateway = await start(trying(share=1))
    gateway.engines.refusals = {"intents@4": Refusal(500, "The adapter is broken.")}
    refused(await gateway.predict(), 500, "broken")
    gateway.engines.refusals = {"intents@4": Refusal(400, "Too long.")}
    refused(await gateway.predict(), 400, "Too long")
    gateway.engines.refusals = {}
    gateway.engines.errors = [Unavailable("gone"), Unavailable("gone")]
    refused(await gateway.predict(), 503, "gone")
    counts = figures(gateway)
    assert (counts.candidate.requests, counts.candidate.errors) == (2, 2)


async def test_the_active_version_answers_if_the_engine_lacks_the_candidate(
    start: Start,
) -> None:
    gateway = await start(trying(share=1))
    gateway.engines.loaded = {"intents@3"}
    response = await gateway.predict()
    assert response.json()["model"] == response.headers["x-choir-model"] == "intents@3"
    assert figures(gateway).candidate == Tally()
    assert figures(gateway).stable.requests == 1


async def test_a_shadow_is_asked_after_the_client_has_its_answer(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0))
    release = hold_back(gateway)
    before = samples()
    response = await gateway.predict(input=["x", "y"], return_members=True)
    assert response.json()["model"] == "intents@3"
    assert figures(gateway).candidate.requests == 0
    release.set()
    await until(lambda: figures(gateway).compared)
    stable, shadow = gateway.engines.calls
    assert shadow == replace(stable, version="intents@4")
    counts = figures(gateway)
    assert (counts.candidate.requests, counts.stable.requests) == (1, 1)
    assert (counts.compared, counts.agreed) == (1, 1.0)
    labels = {"ensemble": "intents", "route": "/v1/predict", "status": "200"}
    assert counted(before, "choir_requests_total") == {
        series(**labels, track="stable"): 1,
        series(**labels, track="shadow"): 1,
    }
    assert sum(counted(before, "choir_request_seconds_count").values()) == 1


async def test_agreement_is_the_share_of_inputs_with_the_same_label(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0))
    answer = gateway.engines.predict

    async def other(call: PredictCall) -> Prediction | Refusal:
        given = await answer(call)
        if call.version == "intents@4" and isinstance(given, Prediction):
            answers = replace(given.answers, winners=np.array([0, 1, 1, 0]))
            return replace(given, answers=answers)
        return given

    gateway.engines.predict = other  # type: ignore[method-assign]
    said = prediction(PredictCall("intents@3", ((),) * 4, "r")).answers  # type: ignore[arg-type]
    assert said.winners.tolist() == [0, 0, 0, 0]
    await gateway.predict(input=["a", "b", "c", "d"])
    await until(lambda: figures(gateway).compared)
    assert figures(gateway).agreed == 0.5


async def test_a_refusal_of_the_shadow_is_counted_but_not_sent(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0))
    gateway.engines.refusals = {"intents@4": Refusal(400, "Cannot.")}
    assert (await gateway.predict()).status_code == 200
    await until(lambda: figures(gateway).candidate.requests)
    assert figures(gateway).candidate.errors == 1
    assert figures(gateway).compared == 0


async def test_a_full_queue_drops_and_counts_requests(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0), shadow_queue=3, shadow_concurrency=1)
    release = hold_back(gateway)
    before = samples()
    for _ in range(10):
        assert (await gateway.predict()).status_code == 200
        await asyncio.sleep(0)
    assert figures(gateway).dropped == 6  # one is being asked, three wait
    assert counted(before, "choir_shadow_dropped_total") == {series(ensemble="intents"): 6}
    release.set()
    await until(lambda: figures(gateway).candidate.requests == 4)


async def test_a_large_request_is_not_mirrored(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0))
    assert (await gateway.predict(input="x" * LARGEST_BODY)).status_code == 200
    assert figures(gateway).dropped == 1


async def test_a_canary_compares_answers_only_if_a_gate_needs_it(start: Start) -> None:
    gateway = await start(trying(share=1.0, min_agreement=0.5))
    assert (await gateway.predict()).json()["model"] == "intents@4"
    await until(lambda: figures(gateway).compared)
    assert versions(gateway) == {"intents@4": 1, "intents@3": 1}
    counts = figures(gateway)
    assert (counts.candidate.requests, counts.stable.requests) == (1, 0)


def document(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def events(*texts: str) -> list[bytes]:
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    usage: dict[str, Any] = {"choices": [], "usage": {}}
    return [
        *(b"data: " + json.dumps(each).encode() + b"\n\n" for each in (*chunks, usage)),
        b"data: [DONE]\n\n",
    ]


def answering(gateway: Gateway, parts: dict[str, list[bytes]]) -> None:
    """Let each version answer with these parts."""

    async def generate(call: GenerateCall) -> AsyncIterator[bytes | Refusal]:
        gateway.engines.calls.append(call)
        for part in parts[call.version]:
            yield part

    gateway.engines.generate = generate  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"),
    [
        ([document("It is  on its way.")], [document("it is on its way.")], 1.0),
        ([document("It is lost.")], [document("It is on its way.")], 0.0),
        (events("It ", "is lost."), events("It is", " lost", "."), 1.0),
        (events("It ", "is lost."), events("It is", " late", "."), 0.0),
    ],
)
async def test_texts_are_compared_as_in_a_vote(
    start: Start, mine: list[bytes], theirs: list[bytes], agreed: float
) -> None:
    gateway = await start(trying("shadow", 1.0, task="generation"))
    answering(gateway, {"replies@3": mine, "replies@4": theirs})
    body = GREEDY | {"stream": len(mine) > 1}
    response = await gateway.http.post(CHAT, json=body)
    assert response.content == b"".join(mine)
    await until(lambda: figures(gateway).compared)
    assert figures(gateway).agreed == agreed
    assert figures(gateway).candidate.requests == 1


async def test_extracted_answers_of_sampled_texts_are_compared(start: Start) -> None:
    rule = {"method": "vote", "extract": {"regex": r"answer: (\d+)", "group": 1}}
    state = trying("shadow", 1.0, task="generation")
    ruled = [_with_fusion(each, rule) for each in state.versions]
    gateway = await start(replace(state, versions=tuple(ruled)))
    answering(
        gateway,
        {"replies@3": [document("so answer: 12")], "replies@4": [document("I say answer: 12")]},
    )
    await gateway.http.post(CHAT, json=GREEDY | {"temperature": 1})
    await until(lambda: figures(gateway).compared)
    assert figures(gateway).agreed == 1.0


def _with_fusion(assigned: AssignedVersion, fusion: dict[str, Any]) -> AssignedVersion:
    changed = assigned.version.ensemble.model_dump() | {"fusion": fusion}
    version = replace(assigned.version, ensemble=Ensemble.model_validate(changed))
    return replace(assigned, version=version)


async def test_sampled_texts_count_only_for_errors_and_latency(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0, task="generation"))
    answering(gateway, {"replies@3": [document("a")], "replies@4": [document("a")]})
    await gateway.http.post(CHAT, json=GREEDY | {"temperature": 0.7})
    await gateway.http.post(CHAT, json=GREEDY)
    await until(lambda: figures(gateway).candidate.requests == 2)
    await until(lambda: figures(gateway).compared == 1)


async def test_a_stream_that_its_client_left_is_not_compared(start: Start) -> None:
    gateway = await start(trying("shadow", 1.0, task="generation"))
    parts = events("a", "b")
    answering(gateway, {"replies@3": parts, "replies@4": parts})
    whole = gateway.engines.generate

    async def generate(call: GenerateCall) -> AsyncIterator[bytes | Refusal]:
        async for part in whole(call):
            yield part
            if call.version == "replies@3":
                await asyncio.Event().wait()

    gateway.engines.generate = generate  # type: ignore[assignment, method-assign]
    async with listening(gateway.app) as url, httpx.AsyncClient() as client:
        body = GREEDY | {"stream": True}
        async with client.stream("POST", url + CHAT, json=body) as response:
            assert await anext(response.aiter_raw()) == parts[0]
    await until(lambda: figures(gateway).candidate.requests == 1)
    await until(lambda: len(gateway.engines.calls) == 2)
    assert figures(gateway).compared == 0


async def test_counts_end_with_the_trial(start: Start) -> None:
    gateway = await start(trying(share=1))
    await gateway.predict()
    gateway.controller.will_say(desired(held(ensemble(version=4))))
    assert await gateway.agent.refresh()
    await gateway.predict()
    assert gateway.agent.ledger.figures() == {}


async def test_the_active_version_gets_the_last_attempt(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.0, 0.0))
    gateway = await start(trying(share=1))
    gateway.engines.lacking = 3
    assert (await gateway.predict()).json()["model"] == "intents@3"
    assert [call.version for call in gateway.engines.calls] == ["intents@4"] + ["intents@3"] * 3
