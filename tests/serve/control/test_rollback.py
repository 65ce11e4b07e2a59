"""Rollbacks: how far they go, and which numbers versions have afterwards."""

from dataclasses import replace

from tests.serve.fakes import fixed_probe
from tests.serve.world import World, committed, refused


async def test_rollback_goes_further_back_each_time_under_the_old_numbers(world: World) -> None:
    await world.start()
    for seed in (100, 101):
        committed(await world.swap(seed))

    assert committed(await world.rollback()).to_version == 2
    assert committed(await world.rollback()).to_version == 1
    assert "no version before it" in refused(await world.rollback(), 409)
    assert world.routed() == ["intents@1"]


async def test_rollback_to_a_number_skips_what_was_active_in_between(world: World) -> None:
    await world.start()
    for seed in (100, 101):
        committed(await world.swap(seed))

    refused(await world.rollback(to=9), 404)
    refused(await world.rollback(to=3), 409)
    assert committed(await world.rollback(to=1)).to_version == 1
    refused(await world.rollback(), 409)


async def test_after_a_rollback_new_versions_get_new_numbers(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    committed(await world.rollback())

    assert committed(await world.swap(101)).to_version == 3
    assert committed(await world.rollback()).to_version == 1


async def test_a_rollback_to_a_warm_version_probes_it_again(world: World) -> None:
    await world.start()
    committed(await world.swap(100))
    engine = world.engines[0]
    prepared = engine.prepared.count("intents@1")
    engine.probe_of = lambda digest: replace(fixed_probe(digest), change=0.0)

    assert "has no effect" in refused(await world.rollback(), 400)
    assert engine.prepared.count("intents@1") > prepared
    assert world.routed() == ["intents@2"]
