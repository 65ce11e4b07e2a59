"""A swap fits a fusion again on the validation scores that its bundle has stored."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from serve.digest import folder_digest
from serve.fusion.drift.baseline import Baseline
from serve.fusion.fitting.note import FitNote, has_fitted_numbers, noted
from serve.fusion.fuse import Fusion
from serve.fusion.stack import LinearStack
from serve.manifest import Ensemble
from tests.serve.control.admission.scored import (
    ROWS,
    SAID,
    STACK,
    TRUTH,
    add_a_space,
    best_temperature,
    fitted_bundle,
    held,
    new_member,
    same_content,
    store_scores,
    view_of,
)
from tests.serve.fakes import LABELS, make_bundle
from tests.serve.world import World, committed, refused


async def test_a_temperature_is_fitted_to_the_adapters_of_the_new_version(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 5.0})
    store_scores(world, bundle)
    await world.start()

    committed(await world.swap(100))

    expected = best_temperature((SAID["100"] + SAID["b"]) / 2)
    assert held(world, 3).fusion.temperature == pytest.approx(expected, abs=1e-3)
    view = await view_of(world)
    fit = {"state": "refitted", "parts": ["temperature"], "stale_members": []}
    assert view.fusion_fit.model_dump() == fit
    assert not view.stale_fusion
    note = FitNote.of(held(world, 3))
    assert note is not None
    assert (note.state, note.rows, note.numbers) == ("refitted", ROWS, True)


async def test_weights_are_those_of_the_new_members(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "weighted_average"})
    store_scores(world, bundle, weights="accuracy", temperature=False)
    await world.start()
    committed(await world.swap(100))
    right = np.array([accuracy_score(TRUTH, SAID[name].argmax(axis=1)) for name in ("100", "b")])
    assert held(world, 3).weights() == pytest.approx(right / right.sum(), abs=1e-6)


async def test_a_stacker_is_fitted_again_and_the_old_one_stays_with_its_version(
    world: World,
) -> None:
    fusion = {"method": "stack", "model": "logistic_regression", "parameters": STACK}
    bundle = fitted_bundle(world, fusion=fusion)
    store_scores(world, bundle, temperature=False)
    await world.start()

    committed(await world.swap(101))

    version = world.engines[0].held["intents@3"]
    assert version.parameters is not None
    assert not version.allow_stale_fusion
    both = np.stack([SAID["101"], SAID["b"]])
    expected = Fusion(version.ensemble, LinearStack.fit(both, TRUTH, version.ensemble))(both)
    found = Fusion.from_manifest(version.ensemble, Path(version.parameters))(both)
    np.testing.assert_allclose(found.probabilities, expected.probabilities)
    committed(await world.rollback())
    old = world.engines[0].held["intents@2"].parameters
    assert old is not None
    assert same_content(old, bundle.path / STACK)
    assert (await view_of(world)).fusion_fit.state == "fitted"


async def test_an_engine_refuses_a_stacker_that_changed_on_disk(world: World) -> None:
    """Each replica compares its digest, as it does for adapters: another file would give other answers."""
    fusion = {"method": "stack", "model": "logistic_regression", "parameters": STACK}
    fitted_bundle(world, fusion=fusion)
    await world.start()
    held_by_first = world.engines[0].held["intents@2"].parameters
    assert held_by_first is not None
    add_a_space(Path(held_by_first))
    with pytest.raises(Exception, match=r"fitted parameters [0-9a-f]{64} have changed on disk"):
        await world.add_engine()
    assert world.engines[1].prepared == []


async def test_what_only_a_request_may_choose_is_fitted_again_too(world: World) -> None:
    fusion = {"method": "average", "model": "logistic_regression", "parameters": STACK}
    bundle = fitted_bundle(world, fusion=fusion)
    store_scores(world, bundle, temperature=False)
    await world.start()
    committed(await world.swap(101))
    version = world.engines[0].held["intents@3"]
    assert version.parameters is not None
    served = Fusion.from_manifest(version.ensemble, Path(version.parameters))
    assert "stack" in served.methods


async def test_the_old_adapters_get_a_fit_of_their_own_when_they_come_back(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 5.0})
    store_scores(world, bundle)
    await world.start()
    original = bundle.adapter_dir(bundle.ensemble("intents").members[0].adapters[0]).as_uri()
    committed(await world.swap(101))
    committed(await world.ask({"members": {"a": original}}))
    expected = best_temperature((SAID["a"] + SAID["b"]) / 2)
    assert held(world, 4).fusion.temperature == pytest.approx(expected, abs=1e-3)
    assert (await view_of(world)).fusion_fit.state == "refitted"


@pytest.mark.parametrize(("missing", "member"), [("100", "a"), ("b", "b")])
async def test_an_adapter_without_scores_is_named_and_nothing_changes(
    world: World, missing: str, member: str
) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle, {name: each for name, each in SAID.items() if name != missing})
    await world.start()

    message = refused(await world.swap(100), 400)

    assert "temperature of intents was fitted on other adapters than the new ones of a" in message
    refs = held(world, 2).members[1].adapters
    digest = refs[0].digest if missing == "b" else folder_digest(world.folder / "new" / "100")
    assert f"no validation scores are stored of the member {member}" in message
    assert digest in message
    assert "allow_stale_fusion" in message
    assert await world.active() == 2
    committed(await world.swap(100, allow_stale_fusion=True))
    assert (await view_of(world)).fusion_fit.state == "stale"
    assert held(world, 3).fusion.temperature == 2
    assert (await view_of(world)).fusion_fit.stale_members == ["a"]


@pytest.mark.parametrize("names", [["100"], ["100", "b"]])
async def test_scores_of_another_shape_are_no_scores(world: World, names: list[str]) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle, SAID | {name: np.full((ROWS, 7), 1 / 7) for name in names})
    await world.start()
    assert "cannot be fitted again" in refused(await world.swap(100), 400)
    assert await world.active() == 2


async def test_permission_is_not_needed_where_scores_are_stored(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    await world.start()
    committed(await world.swap(100, allow_stale_fusion=True))
    assert (await view_of(world)).fusion_fit.state == "refitted"
    assert not world.engines[0].held["intents@3"].allow_stale_fusion


@pytest.mark.parametrize("scored", [True, False])
async def test_numbers_set_by_hand_stay_as_they_are(world: World, scored: bool) -> None:
    fusion = {"method": "weighted_average", "temperature": 2.0}
    bundle = fitted_bundle(world, by_hand=True, fusion=fusion)
    if scored:
        store_scores(world, bundle)
    await world.start()
    fit = {"state": "manual", "parts": ["weights", "temperature"], "stale_members": []}
    assert (await view_of(world)).fusion_fit.model_dump() == fit
    for seed in (100, 101):
        committed(await world.swap(seed))
        version = held(world, await world.active())
        assert version.weights() == pytest.approx([0.7, 0.3])
        assert version.fusion.temperature == 2
        assert (await view_of(world)).fusion_fit.model_dump() == fit
        assert not (await view_of(world)).stale_fusion


async def test_what_somebody_has_changed_after_the_fit_is_set_by_hand(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "weighted_average"})
    store_scores(world, bundle)
    trained = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    trained["members"][0]["weight"] = 0.9
    bundle.write_ensemble(Ensemble.model_validate(trained | {"version": 3}))
    await world.start()
    committed(await world.swap(100))
    assert held(world, 4).weights() == pytest.approx([0.75, 0.25])
    assert (await view_of(world)).fusion_fit.state == "manual"


async def test_weights_set_by_hand_stay_beside_a_stacker_that_is_fitted_again(
    world: World,
) -> None:
    fusion = {"method": "stack", "model": "logistic_regression", "parameters": STACK}
    bundle = fitted_bundle(world, by_hand=True, fusion=fusion)
    store_scores(world, bundle)
    await world.start()
    committed(await world.swap(101))
    assert held(world, 3).weights() == pytest.approx([0.7, 0.3])
    assert held(world, 3).fusion.temperature == 1
    assert (await view_of(world)).fusion_fit.state == "refitted"
    assert not has_fitted_numbers(held(world, 3))
    committed(await world.swap(100))
    assert held(world, 4).weights() == pytest.approx([0.7, 0.3])


async def test_a_bundle_of_before_there_were_notes_is_fitted_if_it_has_validation_figures(
    world: World,
) -> None:
    figures = {"validation": {"accuracy": 0.9}}
    fitted_bundle(world, by_hand=True, fusion={"method": "weighted_average"}, scores=figures)
    await world.start()
    assert (await view_of(world)).fusion_fit.state == "fitted"
    assert "weights of intents were fitted on other" in refused(await world.swap(100), 400)


@pytest.mark.parametrize("temperature", [1.0, 2.0], ids=["nothing is fitted", "refitted"])
async def test_a_new_version_has_a_baseline_where_scores_of_its_adapters_are_stored(
    world: World, temperature: float
) -> None:
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    fusion = {"method": "average", "temperature": temperature}
    fitted = Ensemble.model_validate(first | {"version": 2, "fusion": fusion})
    bundle.write_ensemble(noted(fitted, "fitted", ROWS))
    world.bundles = [bundle]
    store_scores(world, bundle, weights="accuracy")
    await world.start()

    committed(await world.swap(100))

    baseline = Baseline.of(held(world, 3))
    assert baseline is not None
    winners = np.mean([SAID["100"], SAID["b"]], axis=0).argmax(axis=1)
    (name,) = baseline.labels.names
    frequent = int((winners == LABELS.index(name)).sum())
    assert baseline.labels.counts == [frequent, ROWS - frequent]
    assert baseline.rows == ROWS
    committed(await world.swap(102, allow_stale_fusion=True))
    assert Baseline.of(held(world, 4)) is None


async def test_a_manifest_keeps_what_it_carries(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    await world.start()
    committed(await world.swap(100))
    carried = held(world, 3).model_dump(mode="json", exclude_none=True)
    committed(await world.ask({"manifest": carried}))
    assert (await view_of(world)).fusion_fit.state == "refitted"
    carried["fusion"]["temperature"] = 1.7
    committed(await world.ask({"manifest": carried}))
    assert held(world, 5).fusion.temperature == 1.7
    assert (await view_of(world)).fusion_fit.state == "manual"


async def test_a_manifest_that_names_a_stacker_of_other_adapters_is_at_fault(world: World) -> None:
    fusion = {"method": "stack", "model": "logistic_regression", "parameters": STACK}
    bundle = fitted_bundle(world, fusion=fusion)
    store_scores(world, bundle)
    await world.start()
    committed(await world.swap(101))
    manifest = held(world, 3).model_dump(mode="json", exclude_none=True)
    manifest["fusion"]["parameters"] = STACK
    assert "fitted on" in refused(await world.ask({"manifest": manifest}), 400)
    assert await world.active() == 3
    committed(await world.ask({"manifest": manifest, "allow_stale_fusion": True}))
    assert (await view_of(world)).fusion_fit.state == "stale"


async def test_scores_of_another_template_do_not_count(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    changed = bundle.ensemble("intents").model_copy(
        update={"version": 3, "template": "Say: {text}"}
    )
    bundle.write_ensemble(changed)
    await world.start()
    assert "of other labels or another template" in refused(await world.swap(100), 400)


async def test_another_controller_knows_what_was_refitted(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    await world.start()
    committed(await world.swap(100))
    await world.kill_controller()
    await asyncio.sleep(0)
    await world.start_controller()
    assert (await view_of(world)).fusion_fit.state == "refitted"


@pytest.mark.parametrize("file", ["rows", "outputs"])
async def test_scores_that_cannot_be_read_are_as_good_as_none(world: World, file: str) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    await world.start()
    folder = bundle.path / "fusion" / "intents" / "validation"
    short = folder_digest(world.folder / "new" / "100").removeprefix("sha256:")[:12]
    damaged = folder / f"{'rows' if file == 'rows' else short}.safetensors"
    damaged.write_bytes(b"\x80\x04K\x01.")
    assert f"{damaged.name} holds no validation scores" in refused(await world.swap(100), 400)


async def test_scores_of_other_rows_do_not_count(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    store_scores(world, bundle)
    await world.start()
    other = f"sha256:{'6' * 64}"
    bundle.validation_scores("intents").write_outputs(new_member(world, "100"), other, SAID["100"])
    assert "no validation scores are stored of the member a" in refused(await world.swap(100), 400)


async def test_scores_do_not_make_a_bundle_unsound(world: World) -> None:
    bundle = fitted_bundle(world, fusion={"method": "average", "temperature": 2.0})
    before = bundle.verify(deep=False)
    store_scores(world, bundle)
    assert bundle.verify(deep=False) == before
