"""What nobody can reach any more is removed; what somebody can is not, whatever happens at the same time."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve.control import acceptance
from serve.errors import Refusal
from serve.protocol.pruning import PruneRequest, PruneView
from serve.protocol.requests import SwapRequest
from tests.serve.fakes import make_bundle
from tests.serve.world import SHORT_LEASE, World, committed, database_url, postgres, world

__all__ = ["database_url", "postgres", "world"]

NOW = {"keep_days": 0, "dry_run": False}


async def prune(world: World, **asked: Any) -> PruneView:
    found = await world.controller.prune(PruneRequest.model_validate(NOW | asked), "ann")
    assert not isinstance(found, Refusal), found.message
    return found


async def versions(world: World) -> list[int]:
    view = await world.controller.ensemble("intents")
    assert not isinstance(view, Refusal)
    return [each.version for each in view.versions]


def adapters(world: World) -> set[str]:
    return {f"sha256:{each}" for each in os.listdir(world.store / "artifacts")}


async def digests_of(world: World, number: int) -> set[str]:
    view = await world.controller.ensemble("intents")
    assert not isinstance(view, Refusal)
    return {digest for each in view.versions if each.version == number for digest in each.digests}


async def swaps(world: World, *seeds: int) -> None:
    for seed in seeds:
        committed(await world.swap(seed))


async def test_versions_and_files_that_nobody_can_reach_are_removed(
    world: World, database_url: str
) -> None:
    await world.start()
    await swaps(world, 100, 101, 102, 103, 104)
    kept = {digest for number in (1, 4, 5, 6) for digest in await digests_of(world, number)}
    gone = set.union(*[await digests_of(world, number) for number in (2, 3)]) - kept

    would = await prune(world, keep_versions=2, dry_run=True)
    assert await versions(world) == [1, 2, 3, 4, 5, 6]
    found = await prune(world, keep_versions=2)

    assert found.model_copy(update={"dry_run": True}) == would
    # 1 came with the bundle, 6 is active, and rollbacks return to 5 and then to 4.
    assert [each.version for each in found.versions] == [2, 3]
    assert {each.digest for each in found.adapters} == gone
    assert found.bytes > 0
    assert await versions(world) == [1, 4, 5, 6]
    assert adapters(world) == kept
    entries = await world.controller.audit()
    assert not isinstance(entries, Refusal)
    assert [(each.actor, each.ensemble, each.to_version) for each in entries[:3]] == [
        *(("ann", "intents", number) for number in (3, 2)),
        ("ann", "", None),
    ]
    assert entries[2].reason is not None
    assert entries[2].reason.startswith("2 versions, 2 adapters and 0 files of fitted parameters")
    nothing = await prune(world, keep_versions=2)
    assert (nothing.versions, nothing.adapters) == ([], [])


async def test_rollbacks_pass_over_what_was_removed_and_a_restart_finds_the_rest(
    world: World,
) -> None:
    world.options = {"keep_warm": 0}
    await world.start()
    await swaps(world, 100, 101, 102, 103)
    await prune(world, keep_versions=1)
    assert await versions(world) == [1, 4, 5]

    await world.kill_controller()
    world.options["lease_seconds"] = SHORT_LEASE
    await world.start_controller()

    assert await versions(world) == [1, 4, 5]
    assert committed(await world.rollback()).to_version == 4
    assert committed(await world.rollback()).to_version == 1
    committed(await world.swap(105))
    assert await world.active() == 6


async def test_the_highest_number_is_never_given_again(world: World) -> None:
    world.options = {"keep_warm": 0}
    await world.start()
    await swaps(world, 100, 101)
    committed(await world.rollback(1))

    await prune(world, keep_versions=1)

    assert await versions(world) == [1, 3]
    committed(await world.swap(102))
    assert await world.active() == 4


async def test_young_versions_stay(world: World) -> None:
    await world.start()
    await swaps(world, 100, 101, 102)

    found = await prune(world, keep_versions=1, keep_days=1)

    assert found.versions == []
    assert await versions(world) == [1, 2, 3, 4]


async def test_what_the_bundles_hold_stays(world: World) -> None:
    """Also the rungs of the leaderboard, which a swap may name by their digests."""
    world.bundles = [make_bundle(world.folder / "bundle")]
    other = make_bundle(world.folder / "other", seed=50)
    rung = world.bundles[0].ensembles()[0].model_dump(mode="json", exclude_none=True)
    source = other.adapter_dir(other.ensembles()[0].members[0].adapters[0])
    ref = world.bundles[0].add_adapter("merged", source)
    rung["members"] = [{"name": "a", "adapters": [ref.model_dump()]}]
    file = world.bundles[0].path / "rungs" / "intents" / "merged.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(rung))
    world.options = {"keep_warm": 0}
    await world.start()
    committed(await world.ask({"manifest": rung}))
    await swaps(world, 100, 101, 102)

    found = await prune(world, keep_versions=1)

    assert [each.version for each in found.versions] == [2, 3]
    assert ref.digest in adapters(world)
    assert ref.digest not in {each.digest for each in found.adapters}
    committed(await world.ask({"manifest": rung}))


async def test_a_bundle_that_cannot_be_read_keeps_everything(world: World) -> None:
    await world.start()
    await swaps(world, 100, 101, 102)
    before = adapters(world)
    manifest = next((world.bundles[0].path / "ensembles").rglob("*.json"))
    manifest.write_text("{")

    answer = await world.controller.prune(
        PruneRequest.model_validate(NOW | {"keep_versions": 1}), "ann"
    )

    assert isinstance(answer, Refusal)
    assert (answer.status, "Nothing is removed" in answer.message) == (409, True)
    assert adapters(world) == before


async def test_an_ensemble_whose_candidate_is_tried_out_is_left_alone(world: World) -> None:
    world.slots = 9
    world.options = {"keep_warm": 0}
    await world.start()
    await swaps(world, 100, 101, 102)
    trial = {"kind": "canary", "gates": {"min_requests": 1000}}
    uri = world.new_adapter(103)
    rollout = await world.ask_without_waiting({"members": {"a": uri}, "strategy": trial})

    found = await prune(world, keep_versions=1)

    assert (found.versions, found.waiting) == ([], ["intents"])
    assert await versions(world) == [1, 2, 3, 4, 5]
    await world.controller.abort(rollout.id, "ann")
    later = await prune(world, keep_versions=1)
    assert [each.version for each in later.versions] == [2]
    await world.kill_controller()
    world.options["lease_seconds"] = SHORT_LEASE
    await world.start_controller()  # it looks for what an aborted trial may still use
    assert await world.active() == 4


async def test_versions_that_engines_hold_stay(world: World) -> None:
    world.options = {"keep_warm": 3}
    world.slots = 9
    await world.start()
    await swaps(world, 100, 101, 102, 103)

    found = await prune(world, keep_versions=1)

    assert [each.version for each in found.versions] == []
    assert world.holding() == [["intents@2", "intents@3", "intents@4", "intents@5"]]


async def test_a_swap_that_is_being_verified_keeps_its_files(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapter is in the store already, and no version has it yet."""
    world.options = {"keep_warm": 0}
    await world.start()
    await swaps(world, 100, 101, 102)
    await prune(world, keep_versions=1)  # 100 and 101 are gone
    entered, go_on = asyncio.Event(), asyncio.Event()
    begin = world.controller._driver.begin

    async def slow_begin(*arguments: Any) -> None:
        entered.set()
        await go_on.wait()
        await begin(*arguments)

    monkeypatch.setattr(world.controller._driver, "begin", slow_begin)
    swap = asyncio.create_task(world.swap(100))
    await entered.wait()
    arrived = adapters(world)
    pruning = asyncio.create_task(prune(world, keep_versions=1))
    await asyncio.sleep(0)
    assert adapters(world) == arrived
    go_on.set()

    committed(await swap)
    await pruning
    assert await digests_of(world, await world.active()) <= adapters(world)

    monkeypatch.setattr(acceptance, "PAUSE_SECONDS", 0.0)
    go_on.clear()
    entered.clear()
    swap = asyncio.create_task(world.swap(104))
    await entered.wait()
    answer = await world.controller.prune(PruneRequest.model_validate(NOW), "ann")
    assert isinstance(answer, Refusal)
    assert answer.status == 409
    go_on.set()
    committed(await swap)


async def test_pruning_while_versions_change_under_load_loses_nothing(world: World) -> None:
    """Two ensembles swap, requests go on, and prunes run all the while. Afterwards everything active loads anew."""
    world.bundles = [make_bundle(world.folder / "bundle", "intents", "tone")]
    world.slots = 12
    world.options = {"keep_warm": 0}
    await world.start(engines=2)
    finished = False
    pruned: list[PruneView] = []

    async def client(name: str) -> None:
        while not finished:
            for engine in world.engines:
                target = world.gateways[0].routes.resolve(name)
                version = await engine.answer(target.key)
                assert version is not None, f"{target.key} was not loaded"
                for folder in version.adapters.values():
                    assert (Path(folder) / "adapter_model.safetensors").is_file()
            await asyncio.sleep(0.001)

    async def change(name: str, seed: int) -> None:
        step = 0
        while step < 4 or not any(each.versions for each in pruned):
            # Content that was there before comes back: its files are in the store, or have just gone.
            uri = world.new_adapter(seed + step % 3)
            body = SwapRequest.model_validate({"members": {"a": uri}})
            committed(await world.controller.swap(name, body, "ada", True))
            step += 1

    async def keep_pruning() -> None:
        while not finished:
            pruned.append(await prune(world, keep_versions=1))
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for each in ("intents", "tone"):
            group.create_task(client(each))
        group.create_task(keep_pruning())
        async with asyncio.TaskGroup() as changes:
            changes.create_task(change("intents", 100))
            changes.create_task(change("tone", 200))
        finished = True

    active = await world.active()
    await world.kill_controller()
    world.options["lease_seconds"] = SHORT_LEASE
    await world.start_controller()
    assert (await world.active()) == active
    assert committed(await world.rollback()).to_version == active - 1
