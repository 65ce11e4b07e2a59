"""Swaps and rollbacks over all replicas, seen from outside: routes, versions that engines hold, answers."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from serve.agents.gateway_agent import GatewayAgent
from serve.agents.routes import UnknownModel
from serve.engine.interface import Probe
from serve.errors import Refusal
from tests.serve.fakes import FakeEngine, fixed_probe, make_bundle, until
from tests.serve.world import SHORT_LEASE, World, committed, refused


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
