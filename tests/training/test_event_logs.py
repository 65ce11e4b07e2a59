"""Event logs: what is written where, with a stand-in for TensorBoard's writer, whose package is optional."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers.integrations import integration_utils

from tests.training.stages.test_curve import Falling, rows
from training import event_logs
from training.event_logs import demand_logs
from training.pipeline import train
from training.progress import Unwatched
from training.recipe import RecipeError, load_recipe
from training.stages.fit import FitOptions, FitRows, Stage, fit


class Writer:
    """Keeps what it is given, as TensorBoard's SummaryWriter writes it."""

    made: ClassVar[dict[str, "Writer"]] = {}

    def __init__(self, log_dir: str) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False
        Writer.made[log_dir] = self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_text(self, name: str, text: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Writer]:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr(Writer, "made", {})
    return Writer.made


def run(folder: Path, **options: Any) -> None:
    def collate(batch: object) -> dict[str, torch.Tensor]:
        return {"labels": torch.zeros(1)}

    fit(
        Falling(),
        FitRows(rows(20), None),
        collate,
        FitOptions(epochs=2, batch_size=4, learning_rate=1e-3, seed=0),
        Stage("x/a", folder / "checkpoints", "float32", Unwatched(), **options),
    )


def test_the_losses_are_written_to_the_stages_own_folder(
    tmp_path: Path, tensorboard: dict[str, Writer]
) -> None:
    run(tmp_path, report_to=["tensorboard"], events=tmp_path / "events")
    [(folder, writer)] = tensorboard.items()
    assert folder == str(tmp_path / "events")
    losses = [(value, step) for name, value, step in writer.scalars if name == "train/loss"]
    assert [step for _, step in losses] == list(range(1, 11))
    assert losses[0][0] > losses[-1][0]
    assert writer.closed


def test_nothing_is_written_unless_the_recipe_asks(
    tmp_path: Path, tensorboard: dict[str, Writer]
) -> None:
    run(tmp_path, events=tmp_path / "events")
    assert tensorboard == {}


def test_a_missing_package_is_said_before_anything_is_trained(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_logs, "find_spec", lambda name: None)
    recipe = write_recipe(tmp_path, report_to=["wandb"])
    with pytest.raises(RecipeError, match="report_to: wandb needs the package wandb"):
        train(recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_unknown_log_is_refused(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="report_to"):
        load_recipe(write_recipe(tmp_path, report_to=["notebook"]))
    demand_logs([])
