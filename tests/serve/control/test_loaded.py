"""Which versions stay loaded, and what makes room for a candidate."""

import asyncio

import pytest

from serve.agents.routes import UnknownModel
from serve.errors import Refusal
from tests.serve.fakes import make_bundle, until
from tests.serve.world import SHORT_LEASE, World, committed, refused


@pytest.mark.parametrize(("keep_warm", "held"), [(0, [4]), (1, [3, 4]), (2, [2, 3, 4])])
async def test_only_the_latest_versions_stay_loaded(
    world: World, keep_warm: int, held: list[int]
) -> None:
    world.options = {"keep_warm": keep_warm}
    await world.start(engines=2)
    for seed in (100, 101, 102):
        committed(await world.swap(seed))

    expected = [f"intents@{version}" for version in held]
    await until(lambda: world.holding() == [expected, expected])
    routes = world.gateways[0].routes
    for version in range(1, 5):
        if version in held:
            assert routes.resolve(f"intents@{version}").key == f"intents@{version}"
        else:
            with pytest.raises(UnknownModel, match=f"intents@{version} is not loaded"):
                routes.resolve(f"intents@{version}")


async def test_a_version_stays_loaded_while_a_gateway_may_still_route_to_it(world: World) -> None:
    world.options = {"keep_warm": 0, "lease_seconds": SHORT_LEASE}
    await world.start(gateways=2)
    world.link.cut_off.add("gateway1")

    swap = asyncio.create_task(world.swap(100))
    await until(lambda: world.routed()[0] == "intents@2")
    assert world.routed()[1] == "intents@1"
    assert "intents@1" in world.engines[0].held

    committed(await swap)
    await until(lambda: world.holding() == [["intents@2"]])


async def test_a_rollout_is_done_when_engines_have_let_go_of_the_old_version(world: World) -> None:
    world.options = {"keep_warm": 0}
    await world.start()
    end = world.engines[0].hold_request("intents@1")

    rollout = committed(await world.swap(100))
    assert (await world.controller.rollouts())[0].state == "draining"
    committed(await world.swap(101))
    end()

    async def done() -> bool:
        view = await world.controller.rollout(rollout.id)
        return not isinstance(view, Refusal) and view.state == "done"

    await until(done)
    await until(lambda: world.holding() == [["intents@3"]])


async def test_warm_versions_make_room_for_a_candidate(world: World) -> None:
    """Each swap changes two members. The engine has slots for two versions and one more adapter."""
    await world.start()
    for seed in range(100, 106, 2):
        members = {"a": world.new_adapter(seed), "b": world.new_adapter(seed + 1)}
        committed(await world.ask({"members": members}))

    assert world.routed() == ["intents@4"]
    await until(lambda: world.holding() == [["intents@3", "intents@4"]])
    assert world.engines[0].most_adapters <= world.slots


async def test_a_candidate_waits_for_slots_that_a_long_answer_still_uses(world: World) -> None:
    world.slots = 4
    await world.start()

    def members(seed: int) -> dict[str, dict[str, str]]:
        pair = {"a": world.new_adapter(seed), "b": world.new_adapter(seed + 1)}
        return {"members": pair}

    committed(await world.ask(members(100)))
    end = world.engines[0].hold_request("intents@1")
    swap = asyncio.create_task(world.ask(members(102)))
    await until(lambda: "intents@1" in world.engines[0]._releasing)
    assert "intents@3" not in world.engines[0].prepared
    end()

    committed(await swap)
    assert world.engines[0].most_adapters <= world.slots


async def test_warm_versions_come_back_when_the_candidate_fails(world: World) -> None:
    world.slots = 4
    await world.start()
    members = {"a": world.new_adapter(100), "b": world.new_adapter(101)}
    committed(await world.ask({"members": members}))
    world.engines[0].broken["intents@3"] = "broken"

    members = {"a": world.new_adapter(102), "b": world.new_adapter(103)}
    refused(await world.ask({"members": members}), 400)

    await until(lambda: world.holding() == [["intents@1", "intents@2"]])
    await until(lambda: "intents@1" in world.gateways[0].routes.models())


async def test_what_cannot_fit_is_refused_and_says_what_is_in_the_way(world: World) -> None:
    world.slots = 4
    world.bundles = [make_bundle(world.folder / "bundle", "intents", "topics")]
    await world.start()

    message = refused(await world.swap(100), 409)

    assert "5 distinct LoRAs, and it has 4 slots" in message
    assert "intents@1 (2), topics@1 (2)" in message
    assert '"max_loras": 5' in message
    assert world.routed() == ["intents@1"]


async def test_adapters_other_than_loras_take_no_slot(world: World) -> None:
    world.slots = 2
    await world.start()
    refused(await world.swap(100), 409)
    for seed in range(3):
        uri = world.new_prompt_adapter(seed)
        committed(await world.ask({"members": {"a": uri}}))
    committed(await world.swap(100))
    await until(lambda: world.holding() == [["intents@4", "intents@5"]])
