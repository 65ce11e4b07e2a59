"""The controller dies at any point, and a new one takes over from the database."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.errors import Refusal
from tests.serve.fakes import FakeEngine, make_bundle, until
from tests.serve.world import SHORT_LEASE, World, committed, refused

pytestmark = pytest.mark.usefixtures("database_url")


async def settle(world: World) -> None:
    """Wait until all participants have reported to the new controller."""
    live = len(world.engines) + len(world.gateways)
    await until(lambda: len(world.controller._participants.live()) == live)


async def restart(world: World) -> None:
    await world.kill_controller()
    await world.start_controller()
    await settle(world)


async def test_answers_go_on_while_there_is_no_controller(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    await until(lambda: world.gateways[0].ready)
    await world.kill_controller()
    await until(lambda: world.gateways[0].degraded)
    target = world.gateways[0].routes.resolve("intents")
    assert await world.engines[0].answer(target.key)
    assert world.gateways[0].ready


async def test_a_gateway_stays_ready_while_a_new_controller_gets_to_know_the_engines(
    world: World,
) -> None:
    world.options = {"lease_seconds": 30}
    await world.start()
    await until(lambda: world.gateways[0].ready)
    world.link.cut_off.add("engine0")
    await world.kill_controller()
    await world.start_controller()
    await until(lambda: world.controller._participants.live("gateway"))
    assert await world.gateways[0].refresh()
    assert world.gateways[0].ready


async def test_a_rollout_that_was_preparing_is_aborted(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(engines=2)
    world.engines[0].gate.clear()
    await world.swap(100, wait=False)
    await until(lambda: "intents@2" in world.engines[1].held)

    await restart(world)
    world.engines[0].gate.set()

    rollout = (await world.controller.rollouts())[0]
    assert (rollout.state, rollout.to_version) == ("aborted", 2)
    assert "restarted" in (rollout.reason or "")
    assert world.routed() == ["intents@1"]
    await until(lambda: world.holding() == [["intents@1"], ["intents@1"]])
    assert committed(await world.swap(101)).to_version == 3


async def test_a_commit_that_some_gateways_have_not_seen_is_completed(world: World) -> None:
    world.options = {"lease_seconds": 3, "keep_warm": 0}
    await world.start(gateways=2)
    world.link.cut_off.add("gateway1")
    await world.swap(100, wait=False)
    await until(lambda: world.routed() == ["intents@2", "intents@1"])

    await world.kill_controller()
    await world.start_controller()
    await until(lambda: world.controller._participants.live("gateway"))
    assert "intents@1" in world.engines[0].held

    world.link.cut_off.clear()
    await until(lambda: world.routed() == ["intents@2", "intents@2"])
    await until(lambda: world.holding() == [["intents@2"]])
    await until_state(world, "done")


async def test_an_old_version_that_was_draining_is_let_go(world: World) -> None:
    world.options = {"keep_warm": 0, "lease_seconds": SHORT_LEASE}
    await world.start()
    end = world.engines[0].hold_request("intents@1")
    committed(await world.swap(100))
    await until_state(world, "draining")

    await restart(world)
    end()

    await until_state(world, "done")
    assert world.holding() == [["intents@2"]]


@pytest.mark.parametrize("written", [False, True])
async def test_a_crash_around_the_commit_leaves_one_known_version_active(
    world: World, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(engines=2, gateways=2)
    crashed = asyncio.Event()
    loop = asyncio.get_running_loop()
    commit: Callable[..., int] = Database.commit

    def crash(self: Database, *args: Any) -> int:
        if written:
            commit(self, *args)
        loop.call_soon_threadsafe(crashed.set)
        raise SystemError("killed")

    monkeypatch.setattr(Database, "commit", crash)
    await world.swap(100, wait=False)
    await crashed.wait()
    monkeypatch.undo()
    await restart(world)

    active = 2 if written else 1
    assert await world.active() == active
    await until(lambda: world.routed() == [f"intents@{active}"] * 2)
    await until_state(world, "done" if written else "aborted")
    assert committed(await world.swap(101)).to_version == 3


async def test_a_database_that_refuses_the_commit_aborts_the_rollout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()

    def refuse(*_: Any) -> int:
        raise DatabaseError("The database failed: disk full.")

    monkeypatch.setattr(Database, "commit", refuse)
    assert "disk full" in refused(await world.swap(100), 503)
    assert world.routed() == ["intents@1"]
    monkeypatch.undo()
    committed(await world.swap(100))


async def test_a_database_that_cannot_be_read_is_said(world: World) -> None:
    await world.start()
    with world.controller._database._engine.begin() as connection:
        for table in ("rollouts", "audit"):
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO lost_{table}"))
    assert "rollouts" in refused(await world.controller.rollouts(), 503)
    assert "rollouts" in refused(await world.controller.rollout("r1"), 503)
    assert "audit" in refused(await world.controller.audit(), 503)


async def test_the_history_and_warm_versions_survive(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    for seed in (100, 101):
        committed(await world.swap(seed))
    await until(lambda: world.controller._catalog.rollout_of("intents") is None)
    loaded = world.engines[0].prepared.copy()

    await restart(world)

    assert world.engines[0].prepared == loaded, "nothing had to be loaded again"
    assert world.holding() == [["intents@2", "intents@3"]]
    assert committed(await world.rollback()).to_version == 2
    assert committed(await world.rollback()).to_version == 1


async def test_the_database_says_what_is_active_whatever_the_bundle_says(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(engines=0, gateways=0)
    bundle = world.bundles[0]
    first = bundle.ensemble("intents")
    bundle.write_ensemble(first.model_copy(update={"version": 7, "template": "{text}?"}))

    await world.kill_controller()
    await world.start_controller()

    view = await world.controller.ensemble("intents")
    assert not isinstance(view, Refusal)
    assert view.active_version == 1
    assert [version.version for version in view.versions] == [1, 7]
    assert "version 1 of the store answers" in view.differences[0]
    assert view.bring_in == "choir swap intents --version 7"
    await world.add_engine()
    assert committed(await world.ask({"version": 7})).to_version == 7
    assert committed(await world.swap(100)).to_version == 8


async def test_another_content_under_a_known_version_is_told_and_not_served(world: World) -> None:
    world.options["lease_seconds"] = SHORT_LEASE  # what follows a restart waits for one
    await world.start(engines=0, gateways=0)
    file = world.bundles[0].path / "ensembles" / "intents" / "1.json"
    changed = world.bundles[0].ensemble("intents").model_copy(update={"template": "{text}!"})
    file.write_text(changed.model_dump_json(exclude_none=True))

    await world.kill_controller()
    await world.start_controller()
    engine = await world.add_engine()

    assert engine.held["intents@1"].ensemble.template == "{text}"
    view = await world.controller.ensemble("intents")
    assert not isinstance(view, Refusal)
    assert view.active_version == 1
    assert (
        "version 1 of the store answers (the same adapters), and not version 2"
        in view.differences[0]
    )
    assert committed(await world.ask({"version": 2})).to_version == 2
    assert engine.held["intents@2"].ensemble.template == "{text}!"


async def test_the_highest_version_of_a_new_bundle_is_active(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents")
    bundle.write_ensemble(first.model_copy(update={"version": 12}))
    world.bundles = [bundle]
    await world.start()
    assert world.routed() == ["intents@12"]
    assert "no version before it" in refused(await world.rollback(), 409)


async def test_the_bundle_may_go_away_once_it_is_imported(world: World) -> None:
    await world.start(engines=0)
    for file in (world.bundles[0].path / "adapters").rglob("*.safetensors"):
        file.unlink()
    engine = FakeEngine()
    await world.add_engine(engine)
    assert list(engine.held) == ["intents@1"]


async def test_a_controller_that_was_replaced_can_change_nothing_any_more(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    old = world.controller
    await world.start_controller()
    await settle(world)
    world.link.controller = old
    await until(lambda: old._participants.live("engine"))

    assert "another" in refused(await world.swap(100), 503).lower()
    assert world.routed() == ["intents@1"]


async def until_state(world: World, state: str) -> None:
    async def reached() -> bool:
        return (await world.controller.rollouts())[0].state == state

    await until(reached)
