"""An accepted change is done exactly once, even if its caller leaves or other work takes long."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.control.artifacts.sources import Sources
from serve.control.database.connection import DatabaseError
from serve.control.database.database import Database
from serve.errors import Refusal
from tests.serve.fakes import make_bundle, until
from tests.serve.world import LEASE, SHORT_LEASE, World, committed, refused


class Gate:
    """Makes a method block until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.opened = threading.Event()
        self.entered = 0
        passing: Callable[..., Any] = getattr(owner, name)

        def wait(*args: Any) -> Any:
            self.entered += 1
            assert self.opened.wait(60)
            return passing(*args)

        monkeypatch.setattr(owner, name, wait)


async def idle(world: World) -> None:
    await until(lambda: world.controller._catalog.rollout_of("intents") is None)
    await until(lambda: not world.controller._acceptance._reserved)


async def leave(call: asyncio.Task[Any]) -> None:
    """The caller disconnects."""
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_change_stays_reserved_when_its_caller_leaves_during_the_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    gate = Gate(monkeypatch, Database, "begin")
    first = asyncio.create_task(world.swap(100))
    await until(lambda: gate.entered)
    await leave(first)

    assert "being verified" in refused(await world.swap(101), 409)
    gate.opened.set()

    await until(lambda: world.routed() == ["intents@2"])
    stored = world.controller._database.ensembles()["intents"].versions
    assert world.engines[0].held["intents@2"].ensemble == stored[2].ensemble
    assert [each.to_version for each in world.controller._database.rollouts()] == [2]
    await idle(world)
    assert committed(await world.swap(101)).to_version == 3


async def test_a_change_goes_on_when_its_caller_leaves_during_the_fetch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    gate = Gate(monkeypatch, Sources, "fetch")
    good = asyncio.create_task(world.swap(100))
    await until(lambda: gate.entered)
    await leave(good)
    gate.opened.set()
    await until(lambda: world.routed() == ["intents@2"])
    await idle(world)

    gate.opened.clear()
    bad = asyncio.create_task(world.ask({"members": {"a": "file:///etc"}}))
    await until(lambda: gate.entered == 2)
    await leave(bad)
    gate.opened.set()
    await until(lambda: world.controller._database.audit()[0].outcome == "refused")
    assert "outside" in (world.controller._database.audit()[0].reason or "")
    await idle(world)
    assert committed(await world.swap(101)).to_version == 3


async def test_a_decision_takes_effect_although_the_caller_leaves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    world.engines[0].gate.clear()
    started = await world.swap(100, wait=False)
    assert not isinstance(started, Refusal)
    gate = Gate(monkeypatch, Database, "decided")
    abort = asyncio.create_task(world.controller.abort(started.id, "bob"))
    await until(lambda: gate.entered)
    await leave(abort)
    gate.opened.set()

    async def ended() -> bool:
        view = await world.controller.rollout(started.id)
        return not isinstance(view, Refusal) and view.state == "aborted"

    await until(ended)
    world.engines[0].gate.set()


async def test_slow_fetches_hold_up_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["intents", *(f"slow{number}" for number in range(8))]
    world.bundles = [make_bundle(world.folder / "bundle", *names, members=1)]
    world.slots = 2 * len(names) + 1
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(6))
    await world.start()
    committed(await world.swap(99))
    gate = Gate(monkeypatch, Sources, "fetch")
    uri = world.new_adapter(100)
    slow = [asyncio.create_task(world.ask({"members": {"a": uri}}, name)) for name in names[1:]]
    await until(lambda: gate.entered == 8)

    assert committed(await world.rollback()).to_version == 1
    assert committed(await world.ask({"version": 2})).to_version == 2
    assert not isinstance(await world.controller.rollouts(), Refusal)
    trial = await world.ask_without_waiting({"version": 1, "strategy": {"kind": "canary"}})
    aborted = await world.controller.abort(trial.id, "bob")
    assert not isinstance(aborted, Refusal)
    assert aborted.state == "aborted"
    gate.opened.set()
    for answer in await asyncio.gather(*slow):
        committed(answer)


async def test_a_fault_of_the_server_is_answered_and_in_the_audit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret path")

    monkeypatch.setattr(Sources, "fetch", fail)
    message = refused(await world.swap(100), 500)
    assert "ZeroDivisionError" in message
    assert "secret" not in message
    assert world.controller._database.audit()[0].reason == message
    monkeypatch.undo()
    committed(await world.swap(100))


async def test_weights_that_are_too_large_to_add_up_are_shares_of_a_swap(world: World) -> None:
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    for member in manifest["members"]:
        member["weight"] = 1e308
    manifest["fusion"] = {"method": "weighted_average"}
    assert committed(await world.ask({"manifest": manifest})).to_version == 2


async def test_weights_are_shown_where_the_method_uses_them(world: World) -> None:
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    given = [0.0] * (len(manifest["members"]) - 1) + [1.0]
    for member, weight in zip(manifest["members"], given, strict=True):
        member["weight"] = weight
    nothing = [None] * len(given)
    for method, shown in (("weighted_average", given), ("average", nothing)):
        manifest["fusion"] = {"method": method}
        committed(await world.ask({"manifest": manifest}))
        (listed,) = await world.controller.ensembles()
        assert [member.weight for member in listed.members] == shown


async def test_what_is_shown_of_a_long_history_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.control.controller.SHOWN_VERSIONS", 50)
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    await world.kill_controller()
    database = Database.open(f"sqlite:///{world.store / 'choir.db'}")
    first = database.ensembles()["intents"].versions[1]
    database.add_versions(
        [
            replace(first, ensemble=first.ensemble.model_copy(update={"version": number}))
            for number in range(2, 301)
        ],
        "ada",
    )
    database.close()
    await world.start_controller()
    await until(lambda: world.controller._participants.live("engine"))

    (listed,) = await world.controller.ensembles()
    assert [each.version for each in listed.versions] == [1, *range(281, 301)]
    assert listed.version_count == 300
    assert listed.versions[0].loaded_on == ["engine/0"]
    one = await world.controller.ensemble("intents")
    assert not isinstance(one, Refusal)
    assert [each.version for each in one.versions] == [1, *range(251, 301)]
    message = refused(await world.ask({"version": 999}), 404)
    assert message.endswith(
        "it has 1, 281, " + ", ".join(map(str, range(282, 301))) + " and 279 more."
    )
    committed(await world.ask({"version": 7}))
    (listed,) = await world.controller.ensembles()
    assert [each.version for each in listed.versions][:2] == [1, 7]


async def test_an_abort_does_not_wait_for_the_database_but_the_next_change_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that fails must leave at once, and a restart must find only one rollout."""
    monkeypatch.setattr("serve.control.driver.RETRY_SECONDS", LEASE)
    await world.start()

    def away(*_: Any) -> None:
        raise DatabaseError("The database failed: it is away.")

    world.engines[0].broken["intents@2"] = "it is broken"
    with monkeypatch.context() as without:
        without.setattr(Database, "advanced", away)
        assert "it is broken" in refused(await world.swap(100), 400)
        assert "does not have the end of the rollout" in refused(await world.swap(101), 503)
    assert [each.state for each in world.controller._database.unfinished()] == ["preparing"]

    committed(await world.swap(101))
    states = [each.state for each in world.controller._database.rollouts()]
    assert states[1:] == ["aborted"]


async def test_a_trial_begins_once_it_is_written_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a server that restarts would unload a candidate that gateways still ask."""
    monkeypatch.setattr("serve.control.driver.RETRY_SECONDS", 0.01)
    await world.start()
    tries = 0
    write = Database.advanced

    def away(self: Database, *args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise DatabaseError("The database failed: it is away.")
        write(self, *args)
        assert not world.gateways[0].routes.trials

    monkeypatch.setattr(Database, "advanced", away)
    await world.swap(100, wait=False, strategy={"kind": "canary"})
    await until(lambda: world.gateways[0].routes.trials)
    assert tries == 4


async def test_an_end_is_written_down_once_the_database_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.control.driver.RETRY_SECONDS", 0.01)
    await world.start()
    tries = 0
    write = Database.advanced

    def away(self: Database, *args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise DatabaseError("The database failed: it is away.")
        write(self, *args)

    world.engines[0].broken["intents@2"] = "it is broken"
    monkeypatch.setattr(Database, "advanced", away)
    refused(await world.swap(100), 400)
    await until(lambda: world.controller._database.unfinished() == [])


@pytest.mark.usefixtures("database_url")
async def test_a_server_that_was_taken_over_lets_its_trial_go_and_writes_nothing(
    world: World, tmp_path: Path
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    trial = {"strategy": {"kind": "canary", "gates": {"min_requests": 1_000_000}}}
    started = await world.swap(100, wait=False, **trial)
    assert not isinstance(started, Refusal)
    old = world.controller
    await until(lambda: world.gateways[0].routes.trials)
    await world.start_controller()
    await until(lambda: world.controller._participants.live("gateway"))
    promoted = await world.controller.promote(started.id, "bob", wait=True)
    assert committed(promoted).to_version == 2

    late = await old.promote(started.id, "eve")
    assert "taken this store over" in refused(late, 503)
    await until(lambda: old._catalog.running(started.id) is None)
    assert world.controller._database.rollouts()[0].state in ("draining", "done")
    actors = {each.actor for each in world.controller._database.audit()}
    assert "eve" not in actors
