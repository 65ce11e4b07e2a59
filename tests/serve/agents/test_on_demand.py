"""More ensembles than an engine has room for: requests load them, and they take turns."""

import asyncio
import random

import pytest

from serve.agents import demands
from serve.control.errors import StartError
from serve.engine.interface import Version
from serve.errors import Refusal
from serve.protocol.views import EnsembleView
from tests.serve.agents.on_demand import answers, ask, start
from tests.serve.fakes import FakeEngine, make_bundle, until
from tests.serve.world import World, committed, refused


async def test_a_hundred_ensembles_share_the_room_of_three(world: World) -> None:
    world.slots = 3
    await start(world, 100)
    engine = world.engines[0]
    assert engine.prepared == []
    keys = [f"e{number}@1" for number in range(100)]
    random.Random(0).shuffle(keys)
    await asyncio.gather(*(answers(ask(world, key), key) for key in keys))
    assert sorted(engine.prepared) == sorted(keys)
    assert engine.most_adapters <= 3


async def test_the_least_recently_used_version_leaves(world: World) -> None:
    world.slots = 2
    await start(world, 3)
    for key in ("e0@1", "e1@1", "e0@1", "e2@1"):
        await answers(ask(world, key), key)
    assert sorted(world.engines[0].held) == ["e0@1", "e2@1"]


async def test_a_version_leaves_only_if_that_makes_room(world: World) -> None:
    world.slots = 3
    await start(world, 2, members=2)
    bundle = world.bundles[0]
    await answers(ask(world, "e0@1"), "e0@1")
    await answers(ask(world, "e1@1"), "e1@1")
    assert sorted(world.engines[0].held) == ["e1@1"]
    assert bundle.ensemble("e0").digests != bundle.ensemble("e1").digests


async def test_a_pinned_ensemble_is_always_loaded(world: World) -> None:
    world.slots = 2
    await start(world, 6, pinned=["e3"])
    engine = world.engines[0]
    assert list(engine.held) == ["e3@1"]
    for number in (0, 1, 2, 4, 5):
        await answers(ask(world, f"e{number}@1"), f"e{number}@1")
        assert "e3@1" in engine.held
    assert engine.prepared.count("e3@1") == 1


async def test_a_version_in_constant_use_leaves_after_its_turn_and_fails_no_request(
    world: World, short_turns: None
) -> None:
    world.slots = 1
    await start(world, 2)
    engine = world.engines[0]
    await answers(ask(world, "e0@1"), "e0@1")
    asked, stop = 0, False

    async def keep_asking() -> None:
        nonlocal asked
        while not stop:
            await answers(ask(world, "e0@1"), "e0@1")
            asked += 1
            await asyncio.sleep(0.001)

    hot = [asyncio.create_task(keep_asking()) for _ in range(8)]
    await until(lambda: asked > 20)
    for _ in range(3):
        before = asked
        await answers(ask(world, "e1@1"), "e1@1")
        await until(lambda: asked > before + 20)  # noqa: B023
    stop = True
    await asyncio.gather(*hot)
    assert engine.most_adapters == 1


async def test_a_long_answer_is_never_cut_off(world: World, short_turns: None) -> None:
    world.slots = 1
    await start(world, 2)
    engine = world.engines[0]
    await answers(ask(world, "e0@1"), "e0@1")
    end = engine.hold_request("e0@1")
    other = asyncio.create_task(ask(world, "e1@1"))
    await asyncio.sleep(0.3)
    assert list(engine.held) == ["e0@1"]
    assert not other.done()
    end()
    await answers(other, "e1@1")


@pytest.mark.parametrize("fault", ["engine", "file", "golden"])
async def test_a_version_that_cannot_be_loaded_says_why_and_others_go_on(
    world: World, fault: str
) -> None:
    world.slots = 1
    names = ["e0", "e1"]
    bundle = world.bundles = [make_bundle(world.folder / "bundle", *names, members=1)]
    if fault == "golden":
        one = bundle[0].ensemble("e0").model_dump(mode="json", exclude_none=True)
        golden = [{"input": "where is it?", "label": "no"}]
        file = bundle[0].path / "ensembles" / "e0" / "1.json"
        file.unlink()
        bundle[0].write_ensemble(
            type(bundle[0].ensemble("e1")).model_validate(one | {"golden": golden})
        )
    world.options = {"pinned": []}
    await world.start()
    engine = world.engines[0]
    says = "no such thing"
    if fault == "engine":
        engine.broken["e0@1"] = says
    if fault == "file":
        digest = bundle[0].ensemble("e0").digests[0].removeprefix("sha256:")
        folder = world.store / "artifacts" / digest
        (folder / "README.md").write_text("changed")
        says = "has changed on disk"
    if fault == "golden":
        says = "is answered 'yes' instead of 'no'"
    for _ in range(3):
        answer = await ask(world, "e0@1")
        assert isinstance(answer, Refusal)
        assert (answer.status, answer.code) == (503, "load_failed")
        assert says in answer.message
    assert engine.prepared.count("e0@1") <= 1  # it is not tried again for each request
    assert not engine.held
    await answers(ask(world, "e1@1"), "e1@1")


async def test_a_failed_version_is_tried_again_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demands, "RETRY_SECONDS", 0.0)
    await start(world, 1)
    engine = world.engines[0]
    engine.broken["e0@1"] = "no such thing"
    assert isinstance(await ask(world, "e0@1"), Refusal)
    del engine.broken["e0@1"]
    await answers(ask(world, "e0@1"), "e0@1")


async def test_an_ensemble_that_is_not_loaded_can_be_swapped(world: World) -> None:
    world.slots = 2
    await start(world, 3, engines=2, keep_warm=0)
    await answers(ask(world, "e1@1"), "e1@1")
    await answers(ask(world, "e2@1"), "e2@1")

    committed(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"))

    assert all("e0@2" in engine.held for engine in world.engines)
    assert world.gateways[0].routes.named("e0").key == "e0@2"
    await answers(ask(world, "e0@2"), "e0@2")
    assert await ask(world, "e0@1") is None  # out of use: the gateway asks again with newer routes
    for key in ("e1@1", "e2@1", "e0@2"):
        await answers(ask(world, key, 1), key)


async def test_a_warm_version_on_demand_can_still_be_asked_for_and_returned_to(
    world: World,
) -> None:
    world.slots = 2
    await start(world, 3)
    committed(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"))
    for key in ("e1@1", "e2@1", "e0@1", "e1@1", "e2@1"):
        await answers(ask(world, key), key)
    assert sorted(world.engines[0].held) == ["e1@1", "e2@1"]
    committed(await world.controller.rollback("e0", None, "ada", True))
    await answers(ask(world, "e0@1"), "e0@1")


async def test_a_bad_candidate_changes_nothing(world: World) -> None:
    world.slots = 2
    await start(world, 3)
    world.engines[0].broken["e0@2"] = "no such thing"
    await answers(ask(world, "e1@1"), "e1@1")
    refused(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"), 400)
    for key in ("e0@1", "e1@1", "e2@1"):
        await answers(ask(world, key), key)


async def test_the_refusal_of_a_candidate_names_what_takes_the_room(world: World) -> None:
    world.slots = 3
    await start(world, 3, pinned=["e0", "e1"])
    message = refused(await world.ask({"members": {"a": world.new_adapter(100)}}, "e0"), 409)
    assert "They are occupied by e0@1 (1), e1@1 (1) and ensembles on demand (1)" in message
    assert "host_adapters: 4" in message


async def test_a_start_is_refused_if_the_largest_ensemble_never_fits(world: World) -> None:
    world.slots = 3
    with pytest.raises(StartError, match="e0@1 has 4 distinct LoRAs"):
        await start(world, 1, members=4)


async def test_a_start_is_refused_if_pinned_ensembles_leave_no_room(world: World) -> None:
    world.slots = 2
    with pytest.raises(StartError, match="fewer ensembles always loaded"):
        await start(world, 4, pinned=["e0", "e1"])


async def test_a_start_is_refused_for_an_unknown_pinned_ensemble(world: World) -> None:
    with pytest.raises(StartError, match="no ensemble 'x' to be pinned; there are e0"):
        await start(world, 1, pinned=["x"])


async def test_the_view_of_an_ensemble_names_the_engines_that_hold_it(world: World) -> None:
    await start(world, 2, pinned=["e1"])
    await answers(ask(world, "e0@1"), "e0@1")

    async def view(name: str) -> tuple[bool, list[str]]:
        found = await world.controller.ensemble(name)
        assert isinstance(found, EnsembleView)
        return found.pinned, found.versions[0].loaded_on

    async def reported() -> bool:
        return await view("e0") == (False, ["engine/0"])

    await until(reported)
    assert await view("e1") == (True, ["engine/0"])


async def test_no_request_fails_during_swaps_and_evictions(world: World, short_turns: None) -> None:
    """The fake engine fails if a version is unloaded while a request runs on it. It refuses more LoRAs than slots."""
    world.slots = 3
    await start(world, 6, engines=2)
    stop, count = False, 0
    rng = random.Random(1)

    async def keep_asking() -> None:
        nonlocal count
        while not stop:
            name, engine = f"e{rng.randrange(6)}", rng.randrange(2)
            answer = None
            for _ in range(
                50
            ):  # as a gateway does: if the engine lacks the version, fetch newer routes
                target = world.gateways[0].routes.named(name)
                answer = await ask(world, target.key, engine)
                if answer is not None:
                    break
                await world.gateways[0].refresh()
            assert isinstance(answer, Version), answer
            assert answer.key == target.key
            count += 1

    clients = [asyncio.create_task(keep_asking()) for _ in range(8)]
    async with asyncio.timeout(60):
        for seed in range(12):
            body = {"members": {"a": world.new_adapter(200 + seed)}}
            committed(await world.ask(body, f"e{seed % 6}"))
        seen = count
        await until(lambda: count > seen + 50)
        stop = True
        await asyncio.gather(*clients)
    assert all(engine.most_adapters <= 3 for engine in world.engines)


async def test_a_new_engine_loads_only_pinned_ensembles(world: World) -> None:
    await start(world, 4, pinned=["e2"])
    engine = await world.add_engine(FakeEngine(world.slots))
    assert list(engine.held) == ["e2@1"]
    await answers(ask(world, "e0@1", 1), "e0@1")
