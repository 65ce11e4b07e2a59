"""A run that is killed with SIGKILL during a stage, and then resumed, ends with the weights of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from serve.digest import folder_digest
from tests.training.conftest import chained, recipe_content

STEPS = 0.05
"""Seconds between two checks of a run's folder."""


class Running:
    """`choir train` in another process."""

    def __init__(self, recipe: Path, out: Path) -> None:
        command = ["-m", "choir_cli.main", "train", str(recipe), "--out", str(out), "--resume"]
        self._out = out
        with out.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env=os.environ
            )

    def kill_in(self, stage: str) -> None:
        """SIGKILL as soon as the stage has a checkpoint and its next epoch goes on."""
        folder = self._out / ".choir-train" / "checkpoints" / stage
        while not any(folder.glob("checkpoint-*/trainer_state.json")):
            assert self._process.poll() is None, "the run ended before it could be killed"
            time.sleep(STEPS)
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait() == -signal.SIGKILL
        assert folder.is_dir()

    def finish(self) -> None:
        assert self._process.wait() == 0, self._out.with_suffix(".log").read_text()


def weights(bundle: Path) -> Mapping[str, str]:
    """Digest of the base's weights and of every adapter."""
    return {
        str(folder.relative_to(bundle)): folder_digest(folder)
        for folder in [bundle / "base", *bundle.glob("adapters/*/*"), *bundle.glob("candidates/*")]
    }


def undisturbed_and_killed(
    recipe: Path, folder: Path, stages: list[str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    Running(recipe, folder / "undisturbed").finish()
    for stage in stages:
        Running(recipe, folder / "killed").kill_in(stage)
    Running(recipe, folder / "killed").finish()
    return weights(folder / "undisturbed"), weights(folder / "killed")


@pytest.mark.slow
def test_a_killed_stage_of_virtual_tokens_goes_on_to_the_same_weights(
    tmp_path: Path, write_recipe: Callable[..., Path], causal_bundle: Any
) -> None:
    """During training, an MLP makes the virtual tokens, and no adapter's file holds it."""
    ensemble = recipe_content()["ensembles"][1] | {
        "members": [
            {"name": "a", "kind": "prefix", "virtual_tokens": 3, "projection": 16, "epochs": 8}
        ]
    }
    base = {"kind": "causal", "path": causal_bundle.base_source}
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensemble])
    undisturbed, killed = undisturbed_and_killed(recipe, tmp_path, ["replies/a"])
    assert len(undisturbed) == 2
    assert killed == undisturbed


@pytest.mark.slow
def test_every_kind_of_stage_goes_on_to_the_same_weights(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    content = recipe_content()
    base = content["base"] | {
        "stages": [
            {"kind": "pretraining", "epochs": 8},
            {"kind": "fine_tuning", "ensembles": ["topics"], "epochs": 8},
        ]
    }
    base["scratch"] = base["scratch"] | {"epochs": 8}
    ensembles = chained(
        [
            {"kind": "lora", "dropout": 0.1},
            {"kind": "prompt", "virtual_tokens": 4, "early_stopping": 8},
        ],
        template="User: {text}\nTopic:",
        defaults={"epochs": 8, "batch_size": 16},
    )
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensembles[0], ensembles[2]])
    stages = [
        "base",
        "base 1/pretraining",
        "base 2/fine_tuning",
        "topics/b",
        "student/a/lora",
        "student/a/prompt",
        "student/a/distillation",
    ]
    undisturbed, killed = undisturbed_and_killed(recipe, tmp_path, stages)
    assert len(undisturbed) == 1 + 2 + 2
    assert killed == undisturbed


@pytest.mark.slow
def test_every_kind_of_stage_of_an_encoder_goes_on_to_the_same_weights(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    scratch = {"architecture": "bert", "hidden": 64, "layers": 1, "heads": 2, "context": 48}
    base = {
        "kind": "encoder",
        "scratch": scratch | {"vocabulary": 320, "epochs": 8, "batch_size": 16},
        "stages": [{"kind": "fine_tuning", "ensembles": ["topics"], "epochs": 8, "soup": 2}],
    }
    ensembles = chained([{"kind": "lora"}], defaults={"epochs": 8, "batch_size": 16})
    recipe = write_recipe(tmp_path, base=base, ensembles=[ensembles[0], ensembles[2]])
    stages = [
        "base",
        "base 1/fine_tuning/1",
        "base 1/fine_tuning/2",
        "topics/a",
        "student/a/lora",
        "student/a/distillation",
    ]
    undisturbed, killed = undisturbed_and_killed(recipe, tmp_path, stages)
    assert killed == undisturbed
