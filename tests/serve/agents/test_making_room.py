"""Which versions leave an engine so that another one fits, and when: for candidates and for requests."""

import asyncio
import logging
import random

import pytest

from serve.agents import demands, eviction
from serve.errors import Refusal
from serve.protocol.requests import SwapRequest
from serve.protocol.views import RolloutView
from tests.docs.log_lines import line_with
from tests.serve.agents.on_demand import answers, ask, start
from tests.serve.fakes import PATIENCE, FakeEngine, make_bundle, make_prompt_adapter, until
from tests.serve.world import World, committed, refused


async def test_prompt_adapters_make_room_for_each_other(
    world: World, short_turns: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve.agents")
    await start(world, 8, adapter=make_prompt_adapter)
    engine = world.engines[0]
    engine.soft_room = 2
    keys = [f"e{number}@1" for number in range(8)]
    for key in keys:
        await answers(ask(world, key), key)
    await asyncio.gather(*(answers(ask(world, key), key) for key in keys))
    assert len(engine.held) == 2
    assert len(engine.prepared) < 40  # one attempt, and one more after each eviction
    for words in ("makes room for", "is loaded, because requests"):
        assert line_with(words).search(caplog.text), caplog.text


async def test_a_candidate_with_prompt_adapters_finds_room(world: World, short_turns: None) -> None:
    await start(world, 3, adapter=make_prompt_adapter)
    engine = world.engines[0]
    engine.soft_room = 2
    await answers(ask(world, "e1@1"), "e1@1")
    await answers(ask(world, "e2@1"), "e2@1")
    committed(await world.ask({"members": {"a": world.new_prompt_adapter(100)}}, "e0"))
    assert "e0@2" in engine.held


async def test_a_version_that_needs_more_memory_than_there_is_is_refused(
    world: World, short_turns: None
) -> None:
    await start(world, 2, members=3, adapter=make_prompt_adapter)
    engine = world.engines[0]
    engine.soft_room = 2
    for key in ("e0@1", "e1@1", "e0@1"):
        answer = await ask(world, key)
        assert isinstance(answer, Refusal)
        assert "take all memory" in answer.message
    assert len(engine.prepared) == 2


async def test_a_candidate_gets_room_before_versions_that_requests_ask_for(
    world: World, short_turns: None
) -> None:
    """The candidate needs the room of two of the three others, whose requests never end at the same time."""
    world.slots = 5
    others = [f"e{number}" for number in range(1, 9)]
    world.bundles = [
        make_bundle(world.folder / "two", "e0", members=2),
        make_bundle(world.folder / "one", *others, members=1, seed=50),
    ]
    world.options = {"pinned": ["e0"], "keep_warm": 0}
    await world.start()
    engine, stop = world.engines[0], False
    rng = random.Random(0)

    async def keep_asking() -> None:
        while not stop:
            key = f"{rng.choice(others)}@1"
            async with world.engine_agents[0].using(key) as refusal:
                assert refusal is None
                if key in engine.held:
                    end = engine.hold_request(key)
                    await asyncio.sleep(rng.uniform(0.02, 0.2))
                    end()

    clients = [asyncio.create_task(keep_asking()) for _ in range(24)]
    await until(lambda: len(engine.prepared) > 8)
    async with asyncio.timeout(5):
        members = {"a": world.new_adapter(300), "b": world.new_adapter(400)}
        committed(await world.ask({"members": members}, "e0"))
    stop = True
    async with asyncio.timeout(20):
        await asyncio.gather(*clients)


async def test_an_idle_version_leaves_while_a_long_answer_keeps_another_loaded(
    world: World, short_turns: None
) -> None:
    world.slots = 2
    await start(world, 4)
    engine = world.engines[0]
    await answers(ask(world, "e0@1"), "e0@1")
    await answers(ask(world, "e1@1"), "e1@1")
    ends = [await busy(world, key) for key in ("e0@1", "e1@1")]
    waiting = asyncio.create_task(ask(world, "e2@1"))
    await until(lambda: "e0@1" in engine._releasing)  # its turn is over, and its answer still runs
    behind = [asyncio.create_task(ask(world, key)) for key in ("e0@1", "e3@1")]
    ends[1].set()
    await answers(waiting, "e2@1")
    await answers(behind[1], "e3@1")
    assert not behind[0].done()
    assert engine.prepared.count("e3@1") == 1
    ends[0].set()
    await answers(behind[0], "e0@1")


async def busy(world: World, key: str) -> asyncio.Event:
    """Start a request for a loaded version. It runs until the event that is returned is set."""
    end, begun = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with world.engine_agents[0].using(key):
            let_go = world.engines[0].hold_request(key)
            begun.set()
            await end.wait()
            let_go()

    task = asyncio.create_task(run())
    await begun.wait()
    end.task = task  # type: ignore[attr-defined]  # it lives as long as its end
    return end


async def test_no_more_versions_leave_than_needed(world: World, short_turns: None) -> None:
    world.slots = 3
    await start(world, 4)
    engine = world.engines[0]
    for number in range(3):
        await answers(ask(world, f"e{number}@1"), f"e{number}@1")
    await asyncio.sleep(0.2)
    end = engine.hold_request(
        "e0@1"
    )  # the agent does not know of this request, so it counts as idle
    waiting = asyncio.create_task(ask(world, "e3@1"))
    await asyncio.sleep(0.3)
    assert sorted(engine.held) == ["e0@1", "e1@1", "e2@1"]
    end()
    await answers(waiting, "e3@1")
    assert sorted(engine.held) == ["e1@1", "e2@1", "e3@1"]


async def test_two_busy_clients_take_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "TURN_SECONDS", 0.3)
    world.slots = 1
    await start(world, 2)
    asked = {"e0@1": 0, "e1@1": 0}

    async def client(key: str) -> None:
        while min(asked.values()) <= 20:  # for ever, if one of them is never answered
            await answers(ask(world, key), key)
            asked[key] += 1
            await asyncio.sleep(0.005)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(client, asked))
    assert len(world.engines[0].prepared) <= 8


async def test_a_broken_warm_version_is_not_tried_in_every_round(world: World) -> None:
    await start(world, 4, pinned=["e0"])
    committed(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"))
    engine = FakeEngine(world.slots)
    engine.broken["e0@1"] = "no such thing"
    await world.add_engine(engine)
    for number in (1, 2, 3, 1):
        await answers(ask(world, f"e{number}@1", 1), f"e{number}@1")
    assert engine.prepared.count("e0@1") == 1


async def test_a_broken_warm_version_is_tried_again_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demands, "RETRY_SECONDS", 0.1)
    await start(world, 1, pinned=["e0"])
    committed(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"))
    engine = FakeEngine(world.slots)
    engine.broken["e0@1"] = "no such thing"
    await world.add_engine(engine)
    await until(lambda: engine.prepared.count("e0@1") == 1)
    del engine.broken["e0@1"]
    await until(lambda: "e0@1" in engine.held)


async def test_nothing_is_loaded_for_clients_that_have_left(world: World) -> None:
    await start(world, 3)
    engine = world.engines[0]
    engine.gate.clear()
    first = asyncio.create_task(ask(world, "e0@1"))
    await until(lambda: engine.prepared)
    left = [asyncio.create_task(ask(world, "e1@1")) for _ in range(2)]
    stays = [asyncio.create_task(ask(world, "e2@1")) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in (*left, stays[0]):
        task.cancel()
    await asyncio.wait([*left, stays[0]])
    engine.gate.set()
    await answers(first, "e0@1")
    await answers(stays[1], "e2@1")
    assert engine.prepared == ["e0@1", "e2@1"]


async def test_a_waiting_version_does_not_keep_the_agent_awake(
    world: World, short_turns: None
) -> None:
    world.slots = 1
    await start(world, 2)
    await answers(ask(world, "e0@1"), "e0@1")
    end = await busy(world, "e0@1")
    waiting = asyncio.create_task(ask(world, "e1@1"))
    agent = world.engine_agents[0]
    rounds, wait = 0, agent._wake.wait

    async def counted() -> bool:
        nonlocal rounds
        woken = await wait()
        rounds += 1
        return woken

    agent._wake.wait = counted  # type: ignore[method-assign]
    for _ in range(20):
        agent._wake.set()
        await asyncio.sleep(0.002)
    rounds = 0
    await asyncio.sleep(0.5)
    assert rounds <= 15
    end.set()
    await answers(waiting, "e1@1")


@pytest.mark.parametrize("kind", ["shadow", "canary"])
async def test_the_version_that_a_candidate_is_compared_with_stays_loaded(
    world: World, short_turns: None, kind: str
) -> None:
    world.slots = 3
    await start(world, 4, keep_warm=0)
    engine = world.engines[0]
    strategy = {"kind": kind, "auto_promote": False}
    body = {"members": {"a": world.new_adapter(100)}, "strategy": strategy}
    request = SwapRequest.model_validate(body)
    begun = await world.controller.swap("e0", request, "ada", False)
    assert isinstance(begun, RolloutView)
    await until(lambda: world.gateways[0].routes.named("e0").trial)
    for number in (1, 2, 3, 1, 2, 3):
        await answers(ask(world, f"e{number}@1"), f"e{number}@1")
        assert {"e0@1", "e0@2"} < engine.held.keys()
    assert engine.prepared.count("e0@1") == 1
    await world.controller.abort(begun.id, "ada")
    await until(lambda: "e0@2" not in engine.held)
    for number in (1, 2, 3):
        await answers(ask(world, f"e{number}@1"), f"e{number}@1")
    assert "e0@1" not in engine.held


async def test_a_trial_needs_room_for_both_versions(world: World) -> None:
    world.slots = 2
    await start(world, 2)
    body = {"members": {"a": world.new_adapter(100)}}
    strategy = {"strategy": {"kind": "canary", "auto_promote": False}}
    async with asyncio.timeout(20):
        message = refused(await world.ask(body | strategy, "e0"), 409)
    assert "They are occupied by e0@1 (1) and ensembles on demand (1)" in message
    committed(await world.ask(body, "e0"))
