"""A swap fits early exit and abstaining to the new adapters."""

import numpy as np
import pytest

from serve.bundle import Bundle
from serve.fusion.errors import FusionError
from serve.fusion.fitting.selective import plain, with_selective
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import EarlyExit
from tests.serve.control.admission.scored import (
    SAID,
    TRUTH,
    fitted_bundle,
    held,
    store_scores,
    view_of,
)
from tests.serve.world import World, committed, refused


def selective(bundle: Bundle) -> None:
    """Give the newest version fits of early exit and abstaining, as training does."""
    ensemble = bundle.ensemble("intents")
    both = np.stack([SAID["a"], SAID["b"]])
    answers = Fusion(plain(ensemble))(both)
    assert isinstance(answers, Fused)
    fitted = with_selective(ensemble, both, TRUTH, answers)
    bundle.write_ensemble(fitted.model_copy(update={"version": 3}))


EARLY = {"method": "average", "early_exit": {"risk": 0.3}, "abstain": {"risk": 0.4}}


@pytest.mark.parametrize("by_hand", [False, True])
async def test_early_exit_is_fitted_to_the_new_adapters(world: World, by_hand: bool) -> None:
    fusion = {**EARLY, "method": "weighted_average"}
    bundle = fitted_bundle(world, fusion=fusion, by_hand=by_hand)
    store_scores(world, bundle, temperature=False)
    selective(bundle)
    await world.start()
    committed(await world.swap(101))
    version = held(world, 4)
    both = np.stack([SAID["101"], SAID["b"]])
    answers = Fusion(plain(version))(both)
    assert isinstance(answers, Fused)
    expected = SelectiveFit.of(with_selective(version, both, TRUTH, answers))
    fit = SelectiveFit.of(version)
    assert fit is not None
    assert expected is not None
    assert fit.early_exit == expected.early_exit
    assert fit.changed_members(version) == []
    view = (await view_of(world)).fusion_fit
    assert (view.state, view.parts) == ("refitted", ["weights", "early_exit", "abstain"])
    assert Fusion(version).selective.exit(None, own=True) is not None
    assert (version.weights() == pytest.approx([0.7, 0.3])) is by_hand


async def test_early_exit_of_other_adapters_is_refused_unless_it_is_allowed(world: World) -> None:
    bundle = fitted_bundle(world, fusion=EARLY)
    selective(bundle)
    await world.start()
    message = refused(await world.swap(100), 400)
    assert "The early exit and abstain of intents were fitted on other adapters" in message
    committed(await world.swap(100, allow_stale_fusion=True))
    assert (await view_of(world)).fusion_fit.state == "stale"
    engine = world.engines[0].held["intents@4"]
    assert Fusion(engine.ensemble, allow_stale=engine.allow_stale_fusion).stale


async def test_early_exit_that_only_requests_ask_for_never_stops_a_swap(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average"})
    selective(bundle)
    await world.start()
    committed(await world.swap(100))
    with pytest.raises(FusionError, match="has no fit of early exit"):
        Fusion(held(world, 4)).selective.exit(EarlyExit(risk=0.1), own=True)
    store_scores(world, bundle, temperature=False)
    committed(await world.swap(101))
    assert Fusion(held(world, 5)).selective.exit(EarlyExit(risk=0.1), own=True) is not None


async def test_a_manifest_that_asks_for_what_was_never_fitted_is_refused(world: World) -> None:
    fitted_bundle(world, fusion={"method": "average"})
    await world.start()
    manifest = held(world, 2).model_dump(mode="json", exclude_none=True)
    manifest["fusion"]["early_exit"] = {"risk": 0.1}
    assert "has no fit of early exit" in refused(await world.ask({"manifest": manifest}), 400)
