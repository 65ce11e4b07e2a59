"""A fusion that was fitted on other adapters: when it is refused, and when it is marked stale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.fusion.fitting.note import noted
from serve.fusion.stack import LinearStack
from serve.manifest import Ensemble
from serve.protocol.views import EnsembleView
from tests.serve.fakes import make_bundle
from tests.serve.world import World, committed, refused


def stacked_bundle(world: World) -> None:
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    file = "fusion/intents/2/stack.json"
    fusion = {"method": "stack", "model": "logistic_regression", "parameters": file}
    ensemble = Ensemble.model_validate(first | {"version": 2, "fusion": fusion})
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8]] * 5, [[0.7, 0.3], [0.4, 0.6]] * 5])
    LinearStack.fit(probabilities, [0, 1] * 5, ensemble).write(bundle.path / file)
    bundle.write_ensemble(ensemble)
    world.bundles = [bundle]


def same_content(one: str, other: Path) -> bool:
    return Path(one).read_bytes() == other.read_bytes()


async def test_a_stacker_fitted_on_other_adapters_needs_to_be_allowed(world: World) -> None:
    stacked_bundle(world)
    await world.start()

    assert "fitted on other adapters" in refused(await world.swap(100), 400)
    committed(await world.swap(100, allow_stale_fusion=True))

    version = world.engines[0].held["intents@3"]
    assert version.allow_stale_fusion
    assert version.parameters is not None
    assert same_content(version.parameters, world.bundles[0].path / "fusion/intents/2/stack.json")
    view = await world.controller.ensemble("intents")
    assert isinstance(view, EnsembleView)
    assert view.stale_fusion
    committed(await world.rollback())
    view = await world.controller.ensemble("intents")
    assert isinstance(view, EnsembleView)
    assert not view.stale_fusion


async def test_what_is_not_stale_is_not_marked_so(world: World) -> None:
    await world.start()
    committed(await world.swap(100, allow_stale_fusion=True))
    assert not world.engines[0].held["intents@2"].allow_stale_fusion


def weighted_bundle(world: World, **fusion: Any) -> dict[str, Any]:
    """Give version 2 weights, and perhaps a temperature, that were fitted on its adapters. Returns its manifest."""
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    first["members"] = [
        member | {"weight": weight}
        for member, weight in zip(first["members"], (0.7, 0.3), strict=True)
    ]
    fitted = first | {"version": 2, "fusion": {"method": "weighted_average"} | fusion}
    bundle.write_ensemble(noted(Ensemble.model_validate(fitted), "fitted", 100))
    world.bundles = [bundle]
    return fitted


async def fit_of(world: World) -> dict[str, Any]:
    view = await world.controller.ensemble("intents")
    assert isinstance(view, EnsembleView)
    return view.fusion_fit.model_dump()


async def test_fitted_weights_and_temperature_do_not_pass_to_new_adapters_in_silence(
    world: World,
) -> None:
    weighted_bundle(world, temperature=1.3)
    await world.start()
    parts = ["weights", "temperature"]
    assert await fit_of(world) == {"state": "fitted", "parts": parts, "stale_members": []}

    message = refused(await world.swap(100), 400)
    assert "weights and temperature of intents were fitted on other adapters" in message
    assert "the new ones of a" in message

    committed(await world.swap(100, allow_stale_fusion=True))
    assert await fit_of(world) == {"state": "stale", "parts": parts, "stale_members": ["a"]}
    assert b'choir_stale_fusion{ensemble="intents"' in await world.controller.metrics()

    committed(await world.rollback())
    assert (await fit_of(world))["state"] == "fitted"


async def test_stale_is_what_differs_from_the_adapters_of_the_fit_however_often_it_is_swapped(
    world: World,
) -> None:
    weighted_bundle(world)
    await world.start()
    first = world.bundles[0].ensemble("intents").members[0].adapters[0]
    original = world.bundles[0].adapter_dir(first).as_uri()
    committed(await world.swap(100, allow_stale_fusion=True))
    refused(await world.swap(101), 400)
    committed(await world.swap(101, allow_stale_fusion=True))
    committed(await world.ask({"members": {"a": original}}))
    assert (await fit_of(world))["state"] == "fitted"


async def test_a_manifest_carries_its_own_weights(world: World) -> None:
    fitted = weighted_bundle(world)
    await world.start()
    committed(await world.swap(100, allow_stale_fusion=True))
    held = world.engines[0].held["intents@3"].ensemble.members[0]
    fitted["members"][0] = held.model_dump(mode="json") | {"weight": 0.6}
    committed(await world.ask({"manifest": fitted}))
    state = await fit_of(world)
    assert state == {"state": "manual", "parts": ["weights"], "stale_members": []}


@pytest.mark.parametrize("weights", [(0.5, 0.5), (3, 3)])
async def test_equal_weights_fit_any_adapters(world: World, weights: tuple[float, float]) -> None:
    weighted_bundle(world)
    await world.start()
    manifest = world.bundles[0].ensemble("intents").model_dump(mode="json", exclude_none=True)
    for member, weight in zip(manifest["members"], weights, strict=True):
        member["weight"] = weight
    committed(await world.ask({"manifest": manifest}))
    committed(await world.swap(100))
    assert await fit_of(world) == {"state": "none", "parts": [], "stale_members": []}
