"""Which engine a call is sent to, by the router that Ray Serve runs in each gateway."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from serve.engine.interface import GenerateCall, PredictCall, Text
from serve.graph.warm_router import WarmRouter

ENGINES = ("a", "b", "c")


@pytest.fixture
async def router() -> WarmRouter:
    router = WarmRouter(
        deployment_id=DeploymentID("Engine", "choir"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    join(router, *ENGINES)
    return router


def join(router: WarmRouter, *engines: str) -> None:
    deployment = DeploymentID("Engine", "choir")
    router.update_replicas(
        [
            SimpleNamespace(  # no actor runs
                replica_id=ReplicaID(each, deployment),
                node_id="",
                availability_zone=None,
                max_ongoing_requests=1000,
                multiplexed_model_ids=set(),
            )
            for each in engines
        ]
    )


def busy(router: WarmRouter, **calls: int) -> None:
    for engine, count in calls.items():
        router.on_new_queue_len_info(ReplicaID(engine, DeploymentID("Engine", "choir")), count)


async def order(router: WarmRouter, call: Any) -> list[list[str]]:
    pending = PendingRequest([call], {}, RequestMetadata("request", "request"))
    ranks = await router.choose_replicas(list(router.curr_replicas.values()), pending)
    return [[each.replica_id.unique_id for each in rank] for rank in ranks]


async def first(router: WarmRouter, call: Any) -> str:
    return (await order(router, call))[0][0]


def completion(prompt: object, **more: object) -> GenerateCall:
    return GenerateCall("replies@1", "completions", {"prompt": prompt, **more}, "request")


def chat(*contents: str, system: str = "Be brief.") -> GenerateCall:
    roles = ("user", "assistant")
    said = [{"role": roles[turn % 2], "content": each} for turn, each in enumerate(contents)]
    messages = [{"role": "system", "content": system}, *said]
    return GenerateCall("replies@1", "chat", {"messages": messages}, "request")


async def test_the_turns_of_a_chat_go_to_one_engine_and_chats_to_all(router: WarmRouter) -> None:
    engines = Counter[str]()
    for number in range(300):
        opening = f"question {number}"
        one = await first(router, chat(opening))
        assert await first(router, chat(opening, "an answer", "and then?")) == one
        engines[one] += 1
    assert min(engines[each] for each in ENGINES) > 60


async def test_prompts_that_begin_alike_go_to_one_engine(router: WarmRouter) -> None:
    text = "A long text about cards. " * 40
    assert len({await first(router, completion(f"{text} {number}")) for number in range(20)}) == 1
    assert len({await first(router, completion([1, 2, 3] * 200 + [n])) for n in range(20)}) == 1


async def test_a_cache_key_of_the_client_decides(router: WarmRouter) -> None:
    calls = [completion(f"{n} other text", prompt_cache_key="mine") for n in range(20)]
    assert len({await first(router, each) for each in calls}) == 1


async def test_a_busy_engine_gets_no_more_for_being_warm(router: WarmRouter) -> None:
    call = completion("where is my card")
    home, second, third = (rank[0] for rank in await order(router, call))
    busy(router, **{home: 10, second: 2, third: 2})
    assert [rank[0] for rank in await order(router, call)] == [second, third, home]
    busy(router, **{home: 5, second: 5, third: 5})
    assert await first(router, call) == home


async def test_an_engine_that_leaves_moves_only_its_own_prompts(router: WarmRouter) -> None:
    calls = [completion(f"text {number}") for number in range(100)]
    before = [await first(router, each) for each in calls]
    join(router, "a", "b")
    after = [await first(router, each) for each in calls]
    assert all(now == was for was, now in zip(before, after, strict=True) if was != "c")
    assert set(after) == {"a", "b"}


async def test_other_calls_are_sent_as_ray_serve_sends_them(router: WarmRouter) -> None:
    call = PredictCall("intents@1", (Text("where is my card"),), "request")
    ranks = [await order(router, call) for _ in range(60)]
    assert all(len(each) == 1 and len(each[0]) == 2 for each in ranks)
    assert {each[0][0] for each in ranks} == set(ENGINES)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": "text"},
        {"messages": [1, None]},
        {"messages": []},
        {"prompt": None},
        {"prompt": []},
        {"input": [{"role": "assistant"}]},
        {"prompt_cache_key": ["a"]},
    ],
)
async def test_a_body_that_vllm_will_refuse_is_sent_to_some_engine(
    router: WarmRouter, body: dict[str, Any]
) -> None:
    assert await first(router, GenerateCall("replies@1", "chat", body, "request")) in ENGINES
