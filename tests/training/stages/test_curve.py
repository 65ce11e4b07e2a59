"""The learning curve of a stage: what the Trainer logged, on disk until the run has recorded it."""

import json
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn

from training.progress import Unwatched
from training.stages.curve import MOST_POINTS, Curve, read_curve
from training.stages.fit import FitOptions, FitRows, Stage, fit


class Falling(nn.Module):
    """A model whose loss on every batch is its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sum()}


def rows(count: int) -> Dataset:
    return Dataset.from_list([{"labels": 0, "length": 1} for _ in range(count)])


def trained(folder: Path, epochs: int, patience: int | None = None) -> Curve:
    options = FitOptions(epochs, batch_size=4, learning_rate=1e-3, seed=0, patience=patience)
    held = rows(4) if patience else None
    stage = Stage("x/a", folder, "float32", Unwatched())

    def collate(batch: object) -> dict[str, torch.Tensor]:
        return {"labels": torch.zeros(1)}

    fit(Falling(), FitRows(rows(20), held), collate, options, stage)
    return Curve.model_validate(read_curve(folder))


def test_a_short_stage_has_points_and_its_loss_falls(tmp_path: Path) -> None:
    curve = trained(tmp_path, epochs=4)
    steps, losses = zip(*curve.training, strict=True)
    assert len(steps) >= 10
    assert max(steps) <= 20
    assert losses[0] > losses[-1]
    assert curve.held_out == []


def test_early_stopping_adds_the_loss_on_held_out_rows_after_each_epoch(tmp_path: Path) -> None:
    curve = trained(tmp_path, epochs=3, patience=2)
    assert [step for step, _ in curve.held_out] == [5, 10, 15]


def test_a_resumed_stage_keeps_the_losses_of_its_first_part(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", epochs=3)
    # As if the process had died after its last epoch, before the curve was recorded.
    (tmp_path / "whole" / "curve.json").unlink()
    again = trained(tmp_path / "whole", epochs=3)
    assert again == whole


def test_a_long_log_is_averaged_to_a_short_curve() -> None:
    log = [{"step": step, "loss": float(step)} for step in range(1, 1001)]
    curve = Curve.of(
        "x", [*log, {"step": 1000, "train_loss": 3.0}, {"step": 7, "loss": float("nan")}]
    )
    assert len(curve.training) == MOST_POINTS
    assert curve.training[0] == (5, 3.0)
    assert curve.training[-1] == (1000, 998.0)
    assert json.loads(curve.model_dump_json())["title"] == "x"
