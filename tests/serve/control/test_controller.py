"""Swaps and rollbacks over all replicas, seen from outside: routes, versions that engines hold, answers."""

import asyncio
from collections import Counter

import pytest

from serve.agents.gateway_agent import GatewayAgent
from serve.errors import Refusal
from tests.serve.fakes import FakeEngine, make_bundle, until
from tests.serve.world import World, committed, refused


async def test_a_swap_reaches_every_gateway_before_it_returns(world: World) -> None:
    await world.start(engines=2, gateways=2)

    answer = committed(await world.swap(100))

    assert (answer.from_version, answer.to_version) == (1, 2)
    assert answer.replicas == {
        "engine/0": "prepared",
        "engine/1": "prepared",
        "gateway/0": "switched",
        "gateway/1": "switched",
    }
    assert world.routed() == ["intents@2", "intents@2"]
    for engine in world.engines:
        changed = engine.held["intents@2"].ensemble
        before = engine.held["intents@1"].ensemble
        assert changed.members[0].adapters[0].digest != before.members[0].adapters[0].digest
        assert changed.members[1] == before.members[1]


async def test_no_request_fails_or_mixes_versions_while_versions_change(world: World) -> None:
    world.options = {"keep_warm": 0}
    await world.start(engines=2, gateways=2)
    finished = False
    answered: set[str] = set()

    async def client(gateway: GatewayAgent, engine: FakeEngine) -> None:
        while not finished:
            target = gateway.routes.resolve("intents")
            version = await engine.answer(target.key)
            assert version is not None, f"{target.key} was not loaded"
            assert version.ensemble == target.ensemble
            answered.add(target.key)
            # A loop that is always busy leaves the threads of the controller no time.
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as clients:
        for gateway in world.gateways:
            for engine in world.engines:
                clients.create_task(client(gateway, engine))
        for seed in (100, 101, 102):
            committed(await world.swap(seed))
        committed(await world.rollback())
        finished = True

    assert {"intents@2", "intents@3", "intents@4"} <= answered
    assert world.routed() == ["intents@3", "intents@3"]


async def test_expected_version_is_compared_before_anything_is_done(world: World) -> None:
    await world.start()
    message = refused(await world.swap(100, expected_version=7), 409)
    assert "is 1, not 7" in message
    committed(await world.swap(100, expected_version=1))
    assert world.engines[0].prepared.count("intents@2") == 1


async def test_of_two_swaps_at_once_one_is_refused_and_one_is_done(world: World) -> None:
    await world.start()
    answers = await asyncio.gather(world.swap(100), world.swap(101))

    losers = [answer for answer in answers if isinstance(answer, Refusal)]
    assert [loser.status for loser in losers] == [409]
    assert await world.active() == 2


async def test_a_swap_without_waiting_returns_while_it_prepares(world: World) -> None:
    await world.start()
    world.engines[0].gate.clear()

    answer = await world.swap(100, wait=False)
    assert not isinstance(answer, Refusal)
    assert answer.state == "preparing"
    assert answer.replicas == {"engine/0": "preparing", "gateway/0": "waiting"}
    assert "preparing" in refused(await world.swap(101), 409)

    world.engines[0].gate.set()
    await until(lambda: world.routed() == ["intents@2"])


async def test_ensembles_roll_out_independently(world: World) -> None:
    world.slots = 9
    world.bundles = [make_bundle(world.folder / "bundle", "intents", "topics")]
    await world.start()
    uris = {name: world.new_adapter(seed) for name, seed in (("intents", 100), ("topics", 101))}

    answers = await asyncio.gather(
        *(world.ask({"members": {"a": uri}}, name) for name, uri in uris.items())
    )

    assert [committed(answer).ensemble for answer in answers] == ["intents", "topics"]
    models = world.gateways[0].routes.models()
    assert models["topics"].key == "topics@2"
    assert models["intents/a"].model == "intents@2/a"


async def test_many_swaps_between_two_contents_end_where_they_began(world: World) -> None:
    await world.start()
    for turn in range(20):
        committed(await world.swap(100 + turn % 2))
    await until(lambda: world.holding() == [["intents@20", "intents@21"]])
    assert len(list((world.store / "artifacts").iterdir())) == 4


async def test_a_start_fails_with_the_reason_when_an_active_version_cannot_be_loaded(
    world: World,
) -> None:
    await world.start(engines=0)
    engine = FakeEngine()
    engine.broken["intents@1"] = "out of memory"
    with pytest.raises(Exception, match="intents@1 cannot be loaded: out of memory"):
        await world.add_engine(engine)


async def test_an_engine_refuses_files_that_changed_on_disk(world: World) -> None:
    await world.start(engines=0)
    for artifact in (world.store / "artifacts").iterdir():
        config = artifact / "adapter_config.json"
        config.chmod(0o644)
        config.write_text(config.read_text() + " ")
    with pytest.raises(Exception, match="has changed on disk"):
        await world.add_engine()
    assert world.engines[0].prepared == []


async def test_an_engine_that_joins_late_is_ready_only_with_what_is_active(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    late = await world.add_engine()
    assert "intents@2" in late.held


async def test_a_gateway_is_ready_only_with_an_engine(world: World) -> None:
    await world.start(engines=0)
    assert not world.gateways[0].ready
    await world.add_engine()
    await until(lambda: world.gateways[0].ready)
    await world.engine_agents[0].stop()
    await until(lambda: not world.gateways[0].ready)


async def test_a_gateway_fetches_newer_routes_when_asked_to(world: World) -> None:
    await world.start()
    assert await world.gateways[0].refresh()
    world.link.controller = None
    assert not await world.gateways[0].refresh(0.05)


async def test_every_change_is_in_the_audit(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    refused(await world.swap(101, expected_version=9), 409)
    committed(await world.rollback())
    world.engines[0].broken["intents@3"] = "broken"
    refused(await world.swap(102), 400)

    entries = [each for each in await world.controller.audit() if each.outcome != "done"]
    assert [
        (each.actor, each.action, each.from_version, each.to_version, each.outcome)
        for each in entries
    ] == [
        ("ada", "swap", 1, 3, "aborted"),
        ("ada", "rollback", 2, 1, "committed"),
        ("ada", "swap", 2, None, "refused"),
        ("ada", "swap", 1, 2, "committed"),
    ]
    assert "is 2, not 9" in (entries[2].reason or "")


async def test_metrics_tell_the_active_version_and_how_rollouts_ended(world: World) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def samples(text: bytes) -> Counter[tuple[str, str]]:
        """Sums over the other labels, such as the strategy of rollouts."""
        sums: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                label = sample.labels.get("outcome") or sample.labels.get("ensemble", "")
                sums[sample.name, label] += sample.value
        return sums

    await world.start()
    before = samples(await world.controller.metrics())
    committed(await world.swap(100))
    world.engines[0].broken["intents@3"] = "broken"
    refused(await world.swap(101), 400)
    after = samples(await world.controller.metrics())

    assert after["choir_active_version", "intents"] == 2
    aborted = ("choir_rollouts_total", "aborted")
    assert after[aborted] - before[aborted] == 1
