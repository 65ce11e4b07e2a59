"""The folders of members' stages during training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.bundle import BaseSpec, Bundle
from training.evaluation.stage_gains import StageGains
from training.execution.jobs import Job
from training.execution.run import Run
from training.members import Members
from training.preparation import load_splits
from training.progress import Unwatched
from training.recipe import load_recipe
from training.stages.base import Base


class Stopped(Exception):
    """Replaces the training."""


class Noting:
    """Workers that train nothing."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def train(self, job: Job) -> None:
        self.jobs.append(job)
        raise Stopped


def test_members_whose_names_could_be_joined_to_the_same_word_have_folders_of_their_own(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    """In the same folder, two members that are trained at once would read each other's checkpoints."""
    common: dict[str, Any] = {"task": "classification", "label": "label"}
    chain = [{"kind": "lora"}, {"kind": "prompt", "virtual_tokens": 2}]
    members = [{"name": "a", "stages": chain}, {"name": "a-lora"}, {"name": "fr-a"}]
    ensembles = [
        common | {"name": "intents", "members": members},
        common | {"name": "intents-fr", "members": [{"name": "a"}]},
    ]
    recipe = load_recipe(write_recipe(tmp_path, ensembles=ensembles))
    run = Run.start(tmp_path / "bundle", recipe, Unwatched(), resume=False)
    bundle = Bundle.create(tmp_path / "own", BaseSpec(path=str(tmp_path), kind="causal"))
    stage_gains = StageGains(recipe, run, load_splits(recipe, tmp_path / "work"))
    base, workers = Base(tmp_path, "causal", "base", by_heads=False), Noting()
    trained = Members(recipe, run, base, bundle, stage_gains, workers, {})
    for ensemble in recipe.ensembles:
        for member in ensemble.members:
            with pytest.raises(Stopped):
                trained.member(member, ensemble, ["card"])
    assert [job.title for job in workers.jobs] == [
        "intents/a/lora",
        "intents/a-lora",
        "intents/fr-a",
        "intents-fr/a",
    ]
    assert len({job.checkpoints for job in workers.jobs}) == 4
    assert len({job.target.parent for job in workers.jobs}) == 4
