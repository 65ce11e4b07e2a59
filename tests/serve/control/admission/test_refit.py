"""A swap fits a fusion again on the validation scores that its bundle has stored."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, log_loss

from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.fusion.drift.baseline import Baseline
from serve.fusion.errors import FusionError
from serve.fusion.fitting.note import FitNote, has_fitted_numbers, noted
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fitting.selective import plain, with_selective
from serve.fusion.fitting.stored_scores import Question, RowsHeader, ValidationRows
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.selective.record import SelectiveFit
from serve.fusion.stack import LinearStack
from serve.manifest import AdapterRef, EarlyExit, Ensemble, Member
from serve.protocol.views import EnsembleView
from tests.serve.fakes import LABELS, make_bundle
from tests.serve.world import World, committed, refused

ROWS = 60
DIGEST = f"sha256:{'5' * 64}"
"""The digest of the validation rows."""
STACK = "fusion/intents/2/stack.json"


def said(seed: int, skill: float) -> NDArray[np.float64]:
    """A member's outputs for N rows and C labels, [N, C]."""
    scores = np.random.default_rng(seed).normal(size=(ROWS, len(LABELS)))
    scores[np.arange(ROWS), TRUTH] += skill
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def add_a_space(file: Path) -> None:
    file.chmod(0o644)
    file.write_text(file.read_text() + " ")


TRUTH = np.random.default_rng(0).integers(len(LABELS), size=ROWS)
SAID = {"a": said(1, 2.0), "b": said(2, 0.7), "100": said(3, 0.4), "101": said(4, 3.0)}
"""Member or new adapter -> its outputs for the rows; 100 is a poor one, 101 a good one."""


def fitted_bundle(world: World, *, by_hand: bool = False, **changes: Any) -> Bundle:
    """Give version 2 fitted numbers of any value, since a swap must not depend on them. `by_hand`: without a note of
    the fit."""
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    for member, weight in zip(first["members"], (0.7, 0.3), strict=True):
        member["weight"] = weight
    ensemble = Ensemble.model_validate(first | {"version": 2} | changes)
    if ensemble.fusion.parameters is not None:
        both = np.stack([SAID["a"], SAID["b"]])
        LinearStack.fit(both, TRUTH, ensemble).write(bundle.path / STACK)
    bundle.write_ensemble(ensemble if by_hand else noted(ensemble, "fitted", ROWS))
    world.bundles = [bundle]
    return bundle


def store_scores(
    world: World,
    bundle: Bundle,
    said: Mapping[str, NDArray[np.float64]] = SAID,
    **options: Any,
) -> None:
    """Store validation scores of members and candidates, as training does."""
    ensemble = bundle.ensemble("intents")
    stored = bundle.validation_scores("intents")
    header = RowsHeader(
        rows=DIGEST, question=Question.of(ensemble), options=FusionOptions(**options)
    )
    stored.write_rows(ValidationRows(header, TRUTH, np.arange(ROWS) % 5))
    members = {member.name: member for member in ensemble.members}
    for name, outputs in said.items():
        stored.write_outputs(members.get(name) or new_member(world, name), DIGEST, outputs)


def new_member(world: World, seed: str) -> Member:
    world.new_adapter(int(seed))
    digest = folder_digest(world.folder / "new" / seed)
    return Member(name="new", adapters=[AdapterRef(adapter="new", digest=digest)])


def same_content(one: str, other: Path) -> bool:
    return Path(one).read_bytes() == other.read_bytes()


async def view_of(world: World) -> EnsembleView:
    view = await world.controller.ensemble("intents")
    assert isinstance(view, EnsembleView)
    return view


def held(world: World, version: int) -> Ensemble:
    return world.engines[0].held[f"intents@{version}"].ensemble


def best_temperature(pooled: NDArray[np.float64]) -> float:
    """The reference: scikit-learn's loss, minimised by another search."""

    def loss(temperature: float) -> float:
        powers = pooled ** (1 / temperature)
        return float(log_loss(TRUTH, powers / powers.sum(axis=1, keepdims=True)))

    return float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x)


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
    expected = with_selective(version, both, TRUTH, Fusion(plain(version))(both))  # type: ignore[arg-type]
    fit = SelectiveFit.of(version)
    assert fit is not None
    assert fit.early_exit == SelectiveFit.of(expected).early_exit  # type: ignore[union-attr]
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
