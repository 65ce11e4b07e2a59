"""What engines and gateways do wrong while a candidate is prepared, and what becomes of the rollout."""

import asyncio
from dataclasses import replace

import pytest

from serve.engine.interface import Probe
from tests.serve.fakes import FakeEngine, fixed_probe, until
from tests.serve.world import SHORT_LEASE, World, committed, refused


async def test_an_engine_that_cannot_prepare_aborts_and_nothing_changes(world: World) -> None:
    await world.start(engines=2)
    world.engines[1].broken["intents@2"] = "the kernel does not like it"

    message = refused(await world.swap(100), 400)

    assert "engine/1 could not prepare" in message
    assert "the kernel does not like it" in message
    assert world.routed() == ["intents@1"]
    await until(lambda: world.holding() == [["intents@1"], ["intents@1"]])
    rollout = (await world.controller.rollouts())[0]
    assert (rollout.state, rollout.reason in message) == ("aborted", True)
    assert committed(await world.swap(101)).to_version == 3


async def test_an_unexpected_error_of_an_engine_aborts_too(world: World) -> None:
    await world.start()

    def fail(digest: str) -> Probe:
        raise ZeroDivisionError

    world.engines[0].probe_of = fail
    assert "ZeroDivisionError" in refused(await world.swap(100), 400)
    assert world.routed() == ["intents@1"]


async def test_replicas_whose_probes_disagree_do_not_go_live(world: World) -> None:
    await world.start(engines=2)
    world.engines[1].probe_of = lambda digest: replace(fixed_probe(digest), outputs=(-70.0, -1.0))

    message = refused(await world.swap(100), 400)

    assert "engine/0 and engine/1 answer the probe differently" in message
    assert world.routed() == ["intents@1"]


async def test_replicas_may_differ_by_rounding(world: World) -> None:
    await world.start(engines=2)
    exact = fixed_probe

    def rounded(digest: str) -> Probe:
        outputs = tuple(value * 1.02 for value in exact(digest).outputs)
        return replace(exact(digest), outputs=outputs, epsilon=2.0**-7)

    world.engines[1].probe_of = rounded
    committed(await world.swap(100))


@pytest.mark.parametrize("change", [0.0, float("nan")])
async def test_an_adapter_without_effect_does_not_go_live(world: World, change: float) -> None:
    await world.start()
    world.engines[0].probe_of = lambda digest: replace(fixed_probe(digest), change=change)
    assert "has no effect" in refused(await world.swap(100), 400)


async def test_an_engine_that_joins_while_others_prepare_is_waited_for(world: World) -> None:
    await world.start()
    late = FakeEngine()
    late.gate.clear()
    world.engines[0].gate.clear()
    swap = asyncio.create_task(world.swap(100))
    await until(lambda: "intents@2" in world.engines[0].prepared)
    joining = asyncio.create_task(world.add_engine(late))
    await until(lambda: late.prepared)

    world.engines[0].gate.set()
    await until(lambda: "intents@2" in world.engines[0].held)
    assert world.routed() == ["intents@1"]
    late.gate.set()

    committed(await swap)
    await joining
    assert "intents@2" in late.held


async def test_an_engine_that_dies_while_preparing_is_not_waited_for_longer_than_its_lease(
    world: World,
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(engines=2)
    world.engines[1].gate.clear()
    swap = asyncio.create_task(world.swap(100))
    await until(lambda: "intents@2" in world.engines[1].prepared)

    world.link.cut_off.add("engine1")

    committed(await swap)
    assert world.routed() == ["intents@2"]


async def test_a_gateway_that_is_cut_off_delays_a_commit_but_does_not_stop_it(
    world: World,
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(gateways=2)
    world.link.cut_off.add("gateway1")

    committed(await world.swap(100))

    assert world.routed() == ["intents@2", "intents@1"]
    await until(lambda: world.gateways[1].degraded)
    assert not world.gateways[0].degraded
    world.link.cut_off.clear()
    await until(lambda: world.routed() == ["intents@2", "intents@2"])
    assert not world.gateways[1].degraded


async def test_a_gateway_that_leaves_delays_nothing(world: World) -> None:
    world.options = {"lease_seconds": 3600}
    await world.start(gateways=2)
    await world.gateways[1].stop()
    committed(await world.swap(100))


async def test_without_an_engine_a_swap_is_refused_at_once(world: World) -> None:
    await world.start(engines=0)
    assert "No engine is alive" in refused(await world.swap(100), 503)


async def test_engines_that_never_answer_abort_a_rollout(world: World) -> None:
    world.options = {"prepare_timeout_seconds": 0.2}
    await world.start()
    world.engines[0].gate.clear()
    message = refused(await world.swap(100), 503)
    assert "engine/0 did not prepare the version in time" in message
