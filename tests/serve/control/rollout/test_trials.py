"""Canaries and shadows over all replicas: which version is asked, how trials end, and what a crash changes."""

import asyncio
import json
import sqlite3
from typing import Any

import pytest

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import UnknownModel
from serve.control import controller as controller_module
from serve.control import driver
from serve.errors import Refusal
from serve.protocol.views import RolloutView, TrialView
from tests.serve.fakes import FakeEngine, until
from tests.serve.world import SHORT_LEASE, World, committed, refused

GATES = {"min_requests": 20, "max_error_rate": 0.1}


@pytest.fixture(autouse=True)
def _figures_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "TRIAL_SECONDS", 0.01)
    monkeypatch.setattr(driver, "FIGURES_SECONDS", 0.0)


def canary(share: float = 0.5, **fields: Any) -> dict[str, Any]:
    return {"kind": "canary", "share": share, "gates": GATES, **fields}


async def try_out(world: World, seed: int = 100, **strategy: Any) -> RolloutView:
    """Start a rollout whose candidate is tried out on all gateways."""
    answer = await world.swap(seed, wait=False, strategy=canary(**strategy))
    assert not isinstance(answer, Refusal), answer.message
    key = f"intents@{answer.to_version}"

    def tried() -> bool:
        return all(key in gateway.routes.models() for gateway in world.gateways)

    await until(tried)
    return answer


def requests(gateway: GatewayAgent, count: int, *, failing: bool = False) -> list[str]:
    """Answer requests as a gateway does. Returns their tracks."""
    tracks = []
    for _ in range(count):
        target = gateway.routes.resolve("intents")
        tracks.append(target.track)
        if target.trial is not None:
            tried = target.track == "canary"
            side = "candidate" if tried else "stable"
            failed = failing and tried
            gateway.ledger.answered(target.trial.attempt, side, 0.01, failed=failed)  # type: ignore[arg-type]
    return tracks


async def look(world: World, rollout: RolloutView) -> RolloutView:
    view = await world.controller.rollout(rollout.id)
    assert not isinstance(view, Refusal)
    return view


async def trial(world: World, rollout: RolloutView) -> TrialView:
    found = (await look(world, rollout)).trial
    assert found is not None
    return found


async def until_state(world: World, rollout: RolloutView, *states: str) -> RolloutView:
    async def reached() -> bool:
        return (await look(world, rollout)).state in states

    await until(reached)
    return await look(world, rollout)


async def test_a_canary_that_passes_is_promoted_everywhere(world: World) -> None:
    await world.start(engines=2, gateways=2)
    swap = asyncio.create_task(world.swap(100, strategy=canary()))
    await until(lambda: all("intents@2" in each.routes.models() for each in world.gateways))
    assert not swap.done()
    tracks: list[str] = []
    while not swap.done():
        for gateway in world.gateways:
            tracks += requests(gateway, 5)
        await asyncio.sleep(0.01)

    answer = committed(await swap)
    assert {"stable", "canary"} <= set(tracks)
    assert set(requests(world.gateways[0], 5)) == {"stable"}
    assert {each.routes.resolve("intents").key for each in world.gateways} == {"intents@2"}
    counts = await trial(world, answer)
    assert counts.candidate.requests >= 20
    assert counts.candidate.errors == 0
    assert counts.candidate.mean_ms == pytest.approx(10)
    assert (answer.strategy, counts.share) == ("canary", 0.5)


async def test_a_canary_that_fails_is_aborted_with_its_figures(world: World) -> None:
    await world.start(engines=2, gateways=2)
    swap = asyncio.create_task(world.swap(100, strategy=canary()))
    await until(lambda: all("intents@2" in each.routes.models() for each in world.gateways))
    requests(world.gateways[0], 100, failing=True)

    message = refused(await swap, 400)
    assert "requests to the candidate failed, more than the max_error_rate of 10.00%" in message
    assert await world.active() == 1
    await until(lambda: world.holding() == [["intents@1"], ["intents@1"]])
    assert set(requests(world.gateways[0], 50)) == {"stable"}
    with pytest.raises(UnknownModel):
        world.gateways[1].routes.resolve("intents@2")
    assert committed(await world.swap(101)).to_version == 3


async def test_a_candidate_stays_loaded_until_no_gateway_can_send_it_requests(
    world: World,
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(gateways=2)
    rollout = await try_out(world, share=1.0)
    world.link.cut_off.add("gateway1")
    answer = await world.controller.abort(rollout.id, "ada")
    assert not isinstance(answer, Refusal)
    assert (answer.state, answer.reason) == ("aborted", "aborted by ada")

    await until(lambda: set(requests(world.gateways[0], 5)) == {"stable"})
    assert requests(world.gateways[1], 1) == ["canary"]
    assert await world.engines[0].answer("intents@2"), "a gateway may still send it requests"
    await until(lambda: world.holding() == [["intents@1"]])
    assert world.gateways[1].degraded


async def test_the_candidate_can_be_pinned_while_it_is_tried_out(world: World) -> None:
    await world.start()
    world.engines[0].gate.clear()
    rollout = await world.swap(100, wait=False, strategy=canary())
    assert not isinstance(rollout, Refusal)
    with pytest.raises(UnknownModel):
        world.gateways[0].routes.resolve("intents@2")
    world.engines[0].gate.set()
    await until(lambda: "intents@2" in world.gateways[0].routes.models())
    target = world.gateways[0].routes.resolve("intents@2")
    assert (target.track, target.trial) == ("pinned", None)
    assert world.gateways[0].routes.resolve("intents@1").track == "pinned"


async def test_a_shadow_is_asked_and_never_answers(world: World) -> None:
    await world.start()
    strategy = {"kind": "shadow", "share": 1.0, "gates": {**GATES, "min_agreement": 0.9}}
    swap = asyncio.create_task(world.swap(100, strategy=strategy))
    gateway = world.gateways[0]
    await until(lambda: "intents@2" in gateway.routes.models())
    assert set(requests(gateway, 50)) == {"stable"}
    (attempt,) = gateway.routes.trials
    view = await world.controller.rollout(attempt)
    assert not isinstance(view, Refusal)
    assert view.state == "shadowing"
    for _ in range(20):
        gateway.ledger.answered(attempt, "candidate", 0.02, failed=False)
        gateway.ledger.compared(attempt, 1.0)
    answer = committed(await swap)
    assert answer.trial is not None
    assert (answer.trial.compared, answer.trial.agreement) == (20, 1.0)


async def test_time_that_runs_out_aborts(world: World) -> None:
    await world.start()
    strategy = canary(gates={**GATES, "max_seconds": 0.2})
    message = refused(await world.swap(100, strategy=strategy), 409)
    assert "after 0.2 seconds the candidate has answered 0 of the 20 requests" in message
    assert world.routed() == ["intents@1"]


async def test_without_auto_promote_a_canary_waits_to_be_told(world: World) -> None:
    await world.start()
    rollout = await try_out(world, auto_promote=False)
    requests(world.gateways[0], 100)

    async def counted() -> bool:
        return (await trial(world, rollout)).candidate.requests >= 20

    await until(counted)
    assert (await look(world, rollout)).state == "canarying"
    promoted = committed(await world.controller.promote(rollout.id, "bob", wait=True))
    assert promoted.trial is not None
    assert promoted.trial.decision == "promote"
    assert world.routed() == ["intents@2"]


async def test_a_promotion_overrides_what_is_still_open(world: World) -> None:
    await world.start()
    rollout = await try_out(world)
    assert committed(await world.controller.promote(rollout.id, "bob", wait=True)).to_version == 2


async def test_a_rollout_can_be_aborted_while_it_prepares(world: World) -> None:
    await world.start()
    world.engines[0].gate.clear()
    swap = asyncio.create_task(world.swap(100))
    await until(lambda: world.engines[0].prepared.count("intents@2"))
    (rollout,) = await world.controller.rollouts()
    assert "an immediate rollout goes through by itself" in refused(
        await world.controller.promote(rollout.id, "bob"), 409
    )
    await world.controller.abort(rollout.id, "bob")
    assert "aborted by bob" in refused(await swap, 409)
    world.engines[0].gate.set()
    await until(lambda: world.holding() == [["intents@1"]])
    assert committed(await world.swap(101)).to_version == 3


async def test_decisions_that_come_too_early_or_too_late(world: World) -> None:
    await world.start()
    refused(await world.controller.promote("nothing", "bob"), 404)
    refused(await world.controller.abort("nothing", "bob"), 404)
    world.engines[0].gate.clear()
    rollout = await world.swap(100, wait=False, strategy=canary())
    assert not isinstance(rollout, Refusal)
    early = refused(await world.controller.promote(rollout.id, "bob"), 409)
    assert "once all engines have prepared" in early
    world.engines[0].gate.set()
    await until_state(world, rollout, "canarying")
    committed(await world.controller.promote(rollout.id, "bob", wait=True))
    late = refused(await world.controller.abort(rollout.id, "bob"), 409)
    assert "use rollback" in late


async def test_no_other_change_starts_meanwhile(world: World) -> None:
    await world.start()
    await try_out(world)
    assert "promote or abort it first" in refused(await world.swap(101), 409)
    assert "promote or abort it first" in refused(await world.rollback(), 409)


async def test_an_engine_that_joins_late_holds_the_candidate_before_it_is_ready(
    world: World,
) -> None:
    await world.start()
    rollout = await try_out(world)
    late = FakeEngine()
    late.gate.clear()
    joining = asyncio.create_task(world.add_engine(late))
    await until(lambda: late.prepared)
    promoting = asyncio.create_task(world.controller.promote(rollout.id, "bob", wait=True))
    await until(lambda: not world.engine_agents[1].ready)
    assert world.routed() == ["intents@1"]
    late.gate.set()
    await joining
    assert {"intents@1", "intents@2"} <= set(late.held)
    committed(await promoting)


async def test_an_engine_that_joins_late_and_cannot_load_the_candidate_aborts(
    world: World,
) -> None:
    await world.start()
    rollout = await try_out(world)
    late = FakeEngine()
    late.broken["intents@2"] = "the kernel does not like it"
    await world.add_engine(late)
    view = await until_state(world, rollout, "aborted")
    assert "engine/1 could not prepare the version: the kernel" in (view.reason or "")
    assert list(late.held) == ["intents@1"]


async def test_figures_of_a_gateway_that_died_still_count(world: World) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(gateways=2)
    rollout = await try_out(world, auto_promote=False, share=1.0)
    requests(world.gateways[0], 15)
    requests(world.gateways[1], 7)

    async def counted() -> bool:
        return (await trial(world, rollout)).candidate.requests == 22

    await until(counted)
    world.link.cut_off.add("gateway1")
    await until(lambda: len(world.controller._participants.live("gateway")) == 1)
    requests(world.gateways[0], 1)
    await until(lambda: counted_at_least(world, rollout, 23))


async def counted_at_least(world: World, rollout: RolloutView, least: int) -> bool:
    return (await trial(world, rollout)).candidate.requests >= least


@pytest.mark.parametrize(("kind", "state"), [("canary", "canarying"), ("shadow", "shadowing")])
async def test_a_trial_goes_on_under_a_new_controller(world: World, kind: str, state: str) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start(gateways=2)
    rollout = await try_out(world, kind=kind, share=1.0)
    (attempt,) = world.gateways[0].routes.trials
    for gateway in world.gateways:
        for _ in range(9):
            gateway.ledger.answered(attempt, "candidate", 0.01, failed=False)
    await until(lambda: counted_at_least(world, rollout, 18))
    world.link.cut_off.add("gateway1")  # its figures are known from the record only
    await until(lambda: written(world) >= 18)

    await world.kill_controller()
    prepared = list(world.engines[0].prepared)
    await world.start_controller()
    assert (await look(world, rollout)).state == state
    await until(lambda: len(world.controller._participants.live("gateway")) == 1)
    assert "intents@2" in world.engines[0].held
    for _ in range(2):
        world.gateways[0].ledger.answered(attempt, "candidate", 0.01, failed=False)

    view = await until_state(world, rollout, "draining", "done")
    assert view.trial is not None
    assert view.trial.candidate.requests == 20
    assert world.engines[0].prepared == prepared, "nothing had to be loaded again"


def written(world: World) -> int:
    """How many requests to the candidate are in the database."""
    with sqlite3.connect(world.store / "choir.db") as database:
        (figures,) = database.execute("SELECT figures FROM rollouts").fetchone()
    return sum(each["candidate"]["requests"] for each in json.loads(figures).values())


@pytest.mark.parametrize("decision", ["promote", "abort"])
async def test_a_decision_survives_a_crash(
    world: World, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.options = {"lease_seconds": SHORT_LEASE}
    await world.start()
    rollout = await try_out(world)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(driver.Driver, "_take", never)
    asking = asyncio.create_task(getattr(world.controller, decision)(rollout.id, "bob"))
    await until(lambda: decided(world) == decision)
    monkeypatch.undo()
    await world.kill_controller()
    asking.cancel()
    await world.start_controller()

    expected = ("draining", "done") if decision == "promote" else ("aborted",)
    await until_state(world, rollout, *expected)
    assert await world.active() == (2 if decision == "promote" else 1)


def decided(world: World) -> str | None:
    with sqlite3.connect(world.store / "choir.db") as database:
        (decision,) = database.execute("SELECT decision FROM rollouts").fetchone()
    return decision  # type: ignore[no-any-return]


async def test_a_candidate_aborted_right_before_a_crash_is_held_while_gateways_ask_it(
    world: World,
) -> None:
    world.options = {"lease_seconds": 3}
    await world.start(gateways=2)
    rollout = await try_out(world, share=1.0)
    world.link.cut_off |= {"gateway1", "engine0"}
    await world.controller.abort(rollout.id, "ada")
    await world.kill_controller()
    world.link.cut_off.discard("engine0")
    await world.start_controller()
    await until(lambda: world.controller._participants.live("engine"))
    assert requests(world.gateways[1], 1) == ["canary"]
    assert await world.engines[0].answer("intents@2")
    world.link.cut_off.clear()
    await until(lambda: requests(world.gateways[1], 1) == ["stable"])
    await until(lambda: world.holding() == [["intents@1"]])


async def test_who_decided_is_in_the_audit_table(world: World) -> None:
    await world.start()
    rollout = await try_out(world)
    await world.controller.abort(rollout.id, "bob")
    await world.kill_controller()
    with sqlite3.connect(world.store / "choir.db") as database:
        rows = database.execute(
            "SELECT actor, action, from_version, to_version, outcome, reason FROM audit "
            "WHERE action != 'import' ORDER BY number"
        ).fetchall()
    assert rows == [
        ("bob", "abort", 1, 2, "decided", None),
        ("ada", "swap", 1, 2, "aborted", "aborted by bob"),
    ]
