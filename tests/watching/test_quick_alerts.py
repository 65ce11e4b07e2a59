"""Alerts that a real Prometheus fires over a real gateway and a real controller; only vLLM is faked.

test_alerts.py causes every alert on a whole server. In one process, engines cannot differ, so ChoirVersionsDiffer is
there alone."""

import asyncio
import random
from pathlib import Path

import pytest

from serve.errors import Refusal
from serve.protocol.strategy import Strategy
from tests.serve.world import World, refused
from tests.watching.prometheus import needs_prometheus
from tests.watching.small import PLACES, small_server

pytestmark = needs_prometheus

BUSY = 'ensemble:choir_requests:rate5m{ensemble="intents"} > 1'
LEASE = 6.0
"""Short enough to wait for, long enough for a busy machine: here the clients share one process with the controller."""
SLOW = {"ChoirSlowAnswers", "ChoirSlowFirstToken"}


async def test_alerts_fire_by_their_causes_and_not_before(world: World, tmp_path: Path) -> None:
    async with small_server(world, tmp_path, lease_seconds=LEASE) as small:
        async with small.clients(2):
            await small.until(lambda: small.prometheus.query(BUSY))
            assert small.prometheus.firing() == set()
            async with small.clients(3 * PLACES):
                await small.only("ChoirQueueFull")
            await small.only()
        world.engines[0].broken["intents@3"] = "its files are damaged"
        assert "damaged" in refused(await world.swap(1), 400)
        await small.only("ChoirLoadFailures")
        await small.only()
        world.link.cut_off.add("engine0")
        await small.only("ChoirLeaseLost")


@pytest.mark.slow
async def test_the_other_alerts_fire_by_their_causes(world: World, tmp_path: Path) -> None:
    async with small_server(world, tmp_path) as small:
        async with small.clients(2):
            await small.until(lambda: small.prometheus.query("choir_drift_answers > 500"))
            assert small.prometheus.firing() == set()

            small.engines.refusal = lambda: (
                Refusal(500, "a fault") if random.random() < 0.05 else None
            )
            await small.only("ChoirErrors")
            small.engines.refusal = lambda: None
            await small.only()

            small.engines.label = "yes"
            await small.only("ChoirDrift")
            small.engines.label = None
            await small.only()

        async with small.clients(PLACES - 1):
            small.engines.seconds = lambda: 7.0 if random.random() < 0.1 else 0.02
            await small.until(lambda: small.prometheus.firing() == SLOW)
            small.engines.seconds = lambda: 0.02
            await small.only()

        engine = world.engines[0]
        engine.gate.clear()
        stuck = asyncio.create_task(world.swap(1))
        await small.only("ChoirRolloutStuck")
        engine.gate.set()
        await stuck
        await small.only()

        trial = Strategy(kind="canary", auto_promote=False)
        swapping = asyncio.create_task(world.swap(2, strategy=trial))
        await small.only("ChoirTrialUndecided")
        rollouts = await world.controller.rollouts()
        assert not isinstance(rollouts, Refusal)
        await world.controller.abort(rollouts[0].id, "ada")
        await swapping
        await small.only()

        small.gone.set()
        await small.only("ChoirDown")
