"""Several bases in one server: each ensemble concerns the engines of its own base, and no other."""

import json
from pathlib import Path

import pytest

from serve.bundle import Bundle, BundleError
from serve.control.admission.pools import by_base
from serve.errors import Refusal
from serve.protocol.requests import SwapRequest
from tests.serve.fakes import make_bundle, until
from tests.serve.world import World, committed, refused


def other_base(bundle: Bundle) -> Bundle:
    """The bundle with the plain base in another use: heads read it."""
    file = bundle.path / "bundle.json"
    content = json.loads(file.read_text())
    content["base"]["kind"] = "encoder"
    file.write_text(json.dumps(content))
    return Bundle.open(bundle.path)


def two_bundles(world: World) -> list[Bundle]:
    """One with `intents`, and one of another base with `topics`."""
    (world.folder / "other").mkdir()
    topics = make_bundle(world.folder / "other" / "topics", "topics", seed=9)
    weights = world.folder / "other" / "base" / "config.json"
    weights.write_text(weights.read_text().replace("}", ', "note": "another base"}'))
    return [make_bundle(world.folder / "mail", "intents"), topics]


async def two_pools(world: World, **options: object) -> None:
    """Two engines of the first base, and one of the second."""
    world.bundles = two_bundles(world)
    world.options = options
    await world.start(engines=2)
    await world.add_engine(pool=1)


async def test_engines_hold_the_versions_of_their_own_base(world: World) -> None:
    await two_pools(world)
    assert world.holding() == [["intents@1"], ["intents@1"], ["topics@1"]]
    pools = {name: world.gateways[0].routes.named(name).pool for name in ("intents", "topics")}
    assert pools == {"intents": "mail", "topics": "topics"}
    assert {each.name: each.pool for each in await world.controller.ensembles()} == pools


async def test_a_swap_waits_for_the_engines_of_its_base_alone(world: World) -> None:
    await two_pools(world)
    world.engines[2].gate.clear()  # an engine of the other base that prepares nothing
    answer = committed(await world.swap(100))
    assert answer.replicas == {
        "engine/0": "prepared",
        "engine/1": "prepared",
        "gateway/0": "switched",
    }
    assert "intents@2" not in world.engines[2].prepared
    assert world.engines[2].held.keys() == {"topics@1"}


async def test_the_other_base_swaps_too_under_its_own_limits(world: World) -> None:
    await two_pools(world)
    body = SwapRequest.model_validate({"members": {"a": world.new_adapter(100)}})
    answer = committed(await world.controller.swap("topics", body, "ada", True))
    assert answer.replicas == {"engine/2": "prepared", "gateway/0": "switched"}
    assert world.routed() == ["intents@1"]
    # 5 slots each: 2 adapters of each ensemble, and the candidates beside them, do not fit into one engine together.
    committed(await world.swap(101))


async def test_no_engine_of_its_base_is_said_of_a_swap_whatever_else_is_alive(world: World) -> None:
    await two_pools(world)
    await world.engine_agents[2].stop()
    body = SwapRequest.model_validate({"members": {"a": world.new_adapter(100)}})
    answer = await world.controller.swap("topics", body, "ada", True)
    assert "No engine is alive" in refused(answer, 503)
    committed(await world.swap(101))


async def test_a_server_is_ready_when_each_base_has_an_engine(world: World) -> None:
    world.bundles = two_bundles(world)
    await world.start(engines=1)
    gateway = world.gateways[0]
    await until(lambda: gateway.ready_engines("mail"))
    assert not gateway.ready
    assert gateway.waiting_for == ["topics"]
    await world.add_engine(pool=1)
    await until(lambda: gateway.ready)
    await world.engine_agents[0].stop()
    await until(lambda: not gateway.ready_engines("mail"))
    assert gateway.ready_engines("topics"), "one base goes on without the other"
    assert gateway.waiting_for == ["mail"]


async def test_replicas_have_numbers_of_their_own_over_all_bases(world: World) -> None:
    await two_pools(world)

    async def numbered() -> bool:
        views = await world.controller.ensembles()
        loaded = {each.name: each.versions[0].loaded_on for each in views}
        return loaded == {"intents": ["engine/0", "engine/1"], "topics": ["engine/2"]}

    await until(numbered)


async def test_one_base_in_two_uses_is_two_pools(world: World) -> None:
    one, two = (make_bundle(world.folder / name, name) for name in ("intents", "topics"))
    assert list(by_base([one, other_base(two)])) == ["intents", "topics"]


def test_bundles_of_one_base_share_a_pool_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    bundles = [make_bundle(tmp_path / name / "bundle", name) for name in ("one", "two")]
    assert by_base(bundles) == {"default": bundles}
    (tmp_path / "two" / "base" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert list(by_base(bundles)) == ["bundle", "bundle-2"]


async def test_an_ensemble_over_two_bases_is_refused(world: World) -> None:
    one, two = (make_bundle(world.folder / name, "intents") for name in ("x", "y"))
    world.bundles = [one, other_base(two)]
    with pytest.raises(BundleError, match="both have an ensemble intents, over different bases"):
        await world.start_controller()


async def test_an_adapter_of_the_other_base_is_refused(world: World) -> None:
    await two_pools(world)
    uri = world.new_adapter(100, hidden=16)
    answer = await world.ask({"members": {"a": uri}}, "topics")
    assert isinstance(answer, Refusal)
    assert answer.code == "adapter_refused"
