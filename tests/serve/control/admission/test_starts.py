"""What a start refuses, and which bundles are served together."""

import pytest

from serve.bundle import BundleError
from serve.control.errors import StartError
from tests.serve.fakes import make_bundle
from tests.serve.world import World


async def test_a_start_is_refused_when_the_active_version_is_unsound(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    world.bundles = [bundle]
    world.options = {}
    ref = bundle.ensemble("intents").members[0].adapters[0]
    (bundle.adapter_dir(ref) / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="digest"):
        await world.start_controller()


async def test_a_start_is_refused_without_room_for_what_is_active(world: World) -> None:
    world.slots = 1
    with pytest.raises(StartError, match='max_loras": 5'):
        await world.start()


async def test_bundles_that_contradict_each_other_are_not_served_together(world: World) -> None:
    world.bundles = [
        make_bundle(world.folder / name, seed=seed) for name, seed in (("x", 0), ("y", 9))
    ]
    with pytest.raises(BundleError, match="both have intents@1"):
        await world.start_controller()


async def test_several_bundles_of_one_base_are_served_together(world: World) -> None:
    world.bundles = [
        make_bundle(world.folder / "x", "intents"),
        make_bundle(world.folder / "y", "topics", seed=9),
    ]
    await world.start()
    assert sorted(world.engines[0].held) == ["intents@1", "topics@1"]
