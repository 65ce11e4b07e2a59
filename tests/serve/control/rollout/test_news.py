"""What the console says of rollouts and of lost processes, in the words of docs/operations.md."""

import asyncio
import logging
from dataclasses import replace

import pytest

from serve.control.rollout.news import tell_recovery, tell_step
from serve.control.rollout.state import Rollout, State
from serve.protocol.strategy import Strategy
from tests.docs.log_lines import documented, line_with
from tests.serve.fakes import until
from tests.serve.world import SHORT_LEASE, World, committed

ROLLOUT = Rollout(
    id="0123456789ab",
    ensemble="intents",
    from_version=1,
    to_version=2,
    action="swap",
    actor="ann, from 127.0.0.1",
    created="2026-01-01T00:00:00Z",
    updated="2026-01-01T00:00:00Z",
)
BACK = replace(ROLLOUT, action="rollback")
CANARY = replace(ROLLOUT, strategy=Strategy(kind="canary", share=0.125))
SHADOW = replace(ROLLOUT, strategy=Strategy(kind="shadow"))


@pytest.mark.parametrize(
    ("rollout", "before", "state", "words"),
    [
        (ROLLOUT, State.PREPARING, State.COMMITTING, "is live, instead of"),
        (BACK, State.PREPARING, State.COMMITTING, "is live again"),
        (ROLLOUT, State.PREPARING, State.ABORTED, "does not go live"),
        (CANARY, State.PREPARING, State.CANARYING, "answers"),
        (SHADOW, State.PREPARING, State.SHADOWING, "is asked N%"),
        (CANARY, State.CANARYING, State.COMMITTING, "has passed its trial"),
        (SHADOW, State.SHADOWING, State.ABORTED, "has not passed its trial"),
        (ROLLOUT, State.DRAINING, State.DONE, "has drained"),
    ],
)
def test_each_step_is_told_as_documented(
    caplog: pytest.LogCaptureFixture, rollout: Rollout, before: State, state: State, words: str
) -> None:
    with caplog.at_level(logging.INFO, "serve.control"):
        tell_step(replace(rollout, state=state, reason="it is worse."), before)
    assert line_with(words).search(caplog.text), caplog.text


def test_preparing_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "serve.control"):
        tell_step(replace(ROLLOUT, state=State.DRAINING), State.COMMITTING)
    assert not caplog.records


def test_who_promoted_a_candidate_is_told(caplog: pytest.LogCaptureFixture) -> None:
    promoted = replace(CANARY, state=State.COMMITTING, decision="promote", decided_by="bob")
    with caplog.at_level(logging.INFO, "serve.control"):
        tell_step(promoted, State.CANARYING)
    assert "version 2 has passed its trial, promoted by bob (" in caplog.text


def test_a_recovery_is_told_as_documented(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "serve.control"):
        tell_recovery(replace(ROLLOUT, state=State.COMMITTING))
    assert line_with("the controller restarted").search(caplog.text), caplog.text


async def test_a_swap_a_rollback_and_a_lost_engine_are_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.options["lease_seconds"] = SHORT_LEASE
    await world.start(engines=2)
    with caplog.at_level(logging.INFO):
        committed(await world.swap(1))
        committed(await world.rollback())
        await world.engine_agents[0]._lease.stop()

        async def told() -> bool:
            return line_with("is silent").search(caplog.text) is not None

        await until(told)
    for words in ("is live, instead of", "is live again"):
        assert line_with(words).search(caplog.text), caplog.text


async def test_a_stop_waits_for_gateways_to_leave(world: World) -> None:
    await world.start(gateways=1)
    (gateway,) = world.gateways
    stopping = asyncio.create_task(world.controller.shut_down())
    await gateway.stopping.wait()
    assert not stopping.done()
    await gateway.stop()
    await stopping


def test_the_page_has_lines_of_both_kinds() -> None:
    assert len(documented()) > 15
