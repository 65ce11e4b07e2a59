"""The validation scores that a run stores in its bundle, and a swap that fits the fusion on them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from serve.adapter import inspect_adapter
from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.fusion.fitting.fit import refit_fusion
from serve.fusion.fitting.note import FitNote, has_fitted_numbers
from serve.fusion.fuse import Fusion
from serve.fusion.stack import LinearStack, read_stack
from serve.manifest import AdapterRef, Ensemble, FusionSpec, Member
from serve.protocol.views import EnsembleView
from tests.serve.fakes import FakeEngine
from tests.serve.fusion.fitting.test_weights import reference_greedy
from tests.serve.world import World, committed
from training.execution.run import recorded_recipe
from training.offline.members import OfflineMembers
from training.pipeline import train
from training.preparation import load_splits


def reference(bundle: Bundle, ensemble: Ensemble) -> np.ndarray:
    """Compute the members' outputs for the validation rows again."""
    recipe = recorded_recipe(bundle.path)
    assert recipe is not None
    rows = load_splits(recipe, bundle.path / ".choir-train").validation
    pair = recipe.data.text_pair
    pairs = list(rows[pair]) if pair else None
    return OfflineMembers(bundle, ensemble).outputs(list(rows[recipe.data.text]), pairs)


def temperature_by_hand(
    ensemble: Ensemble, said: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> float:
    """The temperature of the least loss by scikit-learn, over rows whose stacker was fitted on the other folds."""
    plain = ensemble.model_copy(update={"fusion": FusionSpec(method="average")})
    pooled = np.empty(said.shape[1:])
    for fold in np.unique(folds):
        own, others = folds == fold, folds != fold
        fusion = Fusion(plain, LinearStack.fit(said[:, others], truth[others], plain))
        pooled[own] = fusion(said[:, own], method="stack").probabilities

    def loss(temperature: float) -> float:
        powers = pooled ** (1 / temperature)
        return float(log_loss(truth, powers / powers.sum(axis=1, keepdims=True)))

    return float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x)


@pytest.mark.parametrize("name", ["causal_bundle", "encoder_bundle"])
def test_stored_outputs_give_the_same_fusion_again(
    request: pytest.FixtureRequest, name: str
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    ensemble = bundle.ensemble("topics")
    stored = bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    outputs = np.stack(
        [stored.outputs(member, rows.header.rows) for member in ensemble.members]  # type: ignore[misc]
    )
    np.testing.assert_allclose(outputs, reference(bundle, ensemble), atol=1e-6)
    again = refit_fusion(ensemble, rows.header.options, outputs, rows.truth, rows.folds)
    assert again.ensemble == ensemble
    file = bundle.fusion_path(ensemble)
    assert file is not None
    assert again.parameters is not None
    assert again.parameters.content() == read_stack(file, "logistic_regression").content()
    note = FitNote.of(ensemble)
    assert note is not None
    assert (note.state, note.rows) == ("fitted", len(rows.truth))
    assert has_fitted_numbers(ensemble)


async def test_a_candidate_is_swapped_in_with_a_fusion_of_its_own(
    causal_bundle: Bundle, tmp_path: Path
) -> None:
    """The real control plane over a trained bundle; only vLLM is faked."""
    world = World(tmp_path)
    world.bundles = [causal_bundle]
    world.slots = 20
    await world.start(engines=0)
    trained = causal_bundle.ensemble("topics")
    engine = FakeEngine(world.slots)
    engine.answers = {str(golden.input): golden.label for golden in trained.golden}
    await world.add_engine(engine)
    folder = causal_bundle.path / "candidates" / "topics-a2"

    committed(await world.ask({"members": {"a": folder.as_uri()}}, "topics"))

    view = await world.controller.ensemble("topics")
    assert isinstance(view, EnsembleView)
    assert view.fusion_fit.state == "refitted"
    served = engine.held["topics@2"].ensemble
    stored = causal_bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    members = [
        Member(name="a", adapters=[AdapterRef(adapter="x", digest=folder_digest(folder))]),
        trained.members[1],
    ]
    outputs = [stored.outputs(member, rows.header.rows) for member in members]
    said = np.stack(outputs)  # type: ignore[arg-type]
    weights = reference_greedy(said, rows.truth, 50, "log_loss")
    np.testing.assert_allclose(served.weights(), weights, atol=1e-6)
    best = temperature_by_hand(served, said, rows.truth, rows.folds)
    assert served.fusion.temperature == pytest.approx(best, rel=2e-3)
    assert served.fusion.temperature != trained.fusion.temperature
    await world.stop()


def test_a_candidate_of_two_adapters_has_scores_of_its_own(soft_bundle: Bundle) -> None:
    folders = sorted((soft_bundle.path / "candidates" / "topics-both").iterdir())
    assert [inspect_adapter(folder).kind for folder in folders] == ["lora", "prompt"]
    refs = [AdapterRef(adapter="x", digest=folder_digest(folder)) for folder in folders]
    stored = soft_bundle.validation_scores("topics")
    rows = stored.rows()
    assert rows is not None
    outputs = stored.outputs(Member(name="lora", adapters=refs), rows.header.rows)
    assert outputs is not None
    np.testing.assert_allclose(outputs.sum(axis=1), 1)


def test_a_run_into_a_folder_below_the_working_one_stores_a_candidates_scores(
    tmp_path: Path,
    write_recipe: Callable[..., Path],
    encoder_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": 1, "batch_size": 36, "rank": 4},
        "members": [{"name": "a", "seed": 1}],
        "candidates": [{"name": "a2", "member": "a", "seed": 2}],
    }
    base = {"kind": "encoder", "path": str(encoder_base)}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    monkeypatch.chdir(tmp_path)
    bundle = train(recipe, Path("bundle"))
    assert len(list((bundle.path / "fusion" / "topics" / "validation").iterdir())) == 3


def test_no_texts_are_stored(causal_bundle: Bundle) -> None:
    recipe = recorded_recipe(causal_bundle.path)
    assert recipe is not None
    rows = load_splits(recipe, causal_bundle.path / ".choir-train").validation
    files = list((causal_bundle.path / "fusion" / "topics" / "validation").iterdir())
    assert len(files) == 4
    for file in files:
        content = file.read_bytes()
        assert not any(text.encode() in content for text in rows["text"])
