"""A search by Ray Tune: what it chooses, on which rows, and that a resumed run does not repeat it."""

import json
import signal
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from serve.bundle import Bundle
from tests.training.conftest import recipe_content
from tests.training.parallel.running import POLL_SECONDS, Running, finished
from training.preparation import load_splits
from training.recipe import load_recipe
from training.search import Found, Study
from training.stages.base import Base

SPACE = {"learning_rate": {"log": [1e-6, 3e-2]}, "rank": [2, 4]}


def searched(write_recipe: Callable[..., Path], folder: Path, base: Path, **changes: Any) -> Path:
    ensemble = {
        "name": "topics",
        "task": "classification",
        "label": "label",
        "defaults": {"epochs": 3, "batch_size": 16},
        "members": [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}],
        **changes,
    }
    content = {"kind": "encoder", "path": str(base)}
    return write_recipe(folder, base=content, ensembles=[ensemble])


def searches(bundle: Path) -> Mapping[str, Found]:
    metrics = json.loads((bundle / "report" / "metrics.json").read_text())
    return {each["title"]: Found.model_validate(each) for each in metrics["searches"]}


def ranks(bundle: Path) -> list[int]:
    files = sorted(bundle.glob("adapters/*/*/adapter_config.json"))
    return [json.loads(file.read_text())["r"] for file in files]


@pytest.mark.slow
def test_the_best_trial_is_what_the_member_is_trained_with(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    search = {"trials": 4, "space": SPACE}
    members = [{"name": "a", "seed": 1, "rank": 8}, {"name": "b", "seed": 2, "search": search}]
    recipe = searched(write_recipe, tmp_path, encoder_base, members=members)
    out = tmp_path / "bundle"
    printed = Running(recipe, out).succeed()
    found = searches(out)["topics/b"]
    assert len(found.trials) == 4
    assert len({json.dumps(trial.values) for trial in found.trials}) == 4
    best = min(found.trials, key=lambda trial: trial.score or 0.0)
    assert (found.values, found.score) == (best.values, best.score)
    # Nothing can be learned with the smallest rates.
    assert found.values["learning_rate"] > min(t.values["learning_rate"] for t in found.trials)
    assert ranks(out) == [8, found.values["rank"]]
    assert Bundle.open(out).ensemble("topics").scores["search"] == {"topics/b": found.values}
    assert "search topics/b: learning_rate" in printed
    assert "search topics/b: learning_rate" in (out / "report" / "index.html").read_text()
    assert not any((out / ".choir-train" / "search").rglob("*.json"))


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_with_the_trials_that_were_not_finished(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    search = {"trials": 4, "space": SPACE}
    members = [{"name": "a", "seed": 1, "epochs": 40, "search": search}]
    recipe = searched(write_recipe, tmp_path, encoder_base, members=members)
    Running(recipe, tmp_path / "undisturbed").succeed()
    out = tmp_path / "killed"
    running = Running(recipe, out)
    kept = out / ".choir-train" / "search" / "topics" / "a"
    while len(list(kept.glob("*.json"))) < 2:
        assert running.goes_on(), running.end()[1]
        time.sleep(POLL_SECONDS)
    running.send(signal.SIGKILL)
    running.end()
    printed = Running(recipe, out, "--resume").succeed()
    tried = "topics/a: learning_rate"
    assert 0 < finished(printed, tried) <= 2
    assert searches(out) == searches(tmp_path / "undisturbed")
    again = Running(recipe, out, "--resume").succeed()
    assert finished(again, tried) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "random",
        pytest.param(
            "tpe",
            marks=pytest.mark.skipif(find_spec("optuna") is None, reason="Optuna is not installed"),
        ),
    ],
)
def test_one_set_of_values_for_all_members_is_the_same_for_the_same_seed(
    method: str, tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    search = {"trials": 5, "space": SPACE, "metric": "accuracy", "method": method}
    recipe = searched(write_recipe, tmp_path, encoder_base, search=search)
    for out in ("one", "two"):
        Running(recipe, tmp_path / out, "--parallel", "2").succeed()
    found = searches(tmp_path / "one")["topics"]
    assert found.method == method
    assert found.score == max(trial.score or 0.0 for trial in found.trials)
    assert ranks(tmp_path / "one") == [found.values["rank"]] * 2
    assert searches(tmp_path / "two")["topics"] == found


def test_trials_are_trained_and_judged_on_training_rows_that_share_no_text(
    tmp_path: Path, write_recipe: Callable[..., Path], encoder_base: Path
) -> None:
    search = {"space": SPACE, "held_out": 0.3}
    recipe = load_recipe(searched(write_recipe, tmp_path, encoder_base, search=search))
    splits = load_splits(recipe, tmp_path / "work")
    ensemble = recipe.ensembles[0]
    assert ensemble.search is not None
    base = Base(encoder_base, "encoder", "base", by_heads=True)
    study = Study("topics", ensemble.search, recipe, ensemble, ["card"], base)
    twice = Dataset.from_list([*splits.train, *splits.train])
    train, judge = study.parts(twice)
    assert len(train) + len(judge) == len(twice)
    assert len(judge) == pytest.approx(0.3 * len(twice), abs=2)
    assert not set(train["text"]) & set(judge["text"])
    assert not {*train["text"], *judge["text"]} & set(splits.validation["text"])


@pytest.mark.slow
def test_a_killed_trial_is_repeated_and_a_failed_one_is_not(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Bundle
) -> None:
    """Too many virtual tokens for the base's context fail, and brackets in an `init` are not markup."""
    space = {"init": ["[/INST]", "[topic]"], "virtual_tokens": [2, 200]}
    search = {"trials": 4, "space": space}
    members = [{"name": "a", "kind": "prompt", "epochs": 40, "search": search}]
    ensemble = recipe_content()["ensembles"][0] | {"members": members, "defaults": {}}
    ensemble |= {"candidates": [], "baselines": []}
    base = {"kind": "causal", "path": causal_bundle.base_source}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    Running(recipe, tmp_path / "undisturbed").succeed()
    running = Running(recipe, tmp_path / "killed")
    while not (trials := running.processes("ray::ImplicitFunc.train")):
        assert running.goes_on(), running.end()[1]
        time.sleep(POLL_SECONDS)
    trials[0].kill()
    printed = running.succeed()
    [found] = searches(tmp_path / "killed").values()
    assert searches(tmp_path / "undisturbed") == {"topics/a": found}
    for trial in found.trials:
        assert (trial.score is None) == (trial.values["virtual_tokens"] == 200)
    # The first trial was killed, and is one of those that can be trained.
    assert found.trials[0].score is not None
    assert "search topics/a: init [" in printed
