"""The learning curve of a stage: its losses by step, kept until the run has recorded them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from serve.files import write_atomically

FILE = "curve.json"
MOST_POINTS = 200
"""The most training losses that a curve keeps, so that a long stage's record stays small."""


class Curve(BaseModel):
    """The losses of one stage, each as (step, loss)."""

    model_config = ConfigDict(frozen=True)

    title: str
    training: list[tuple[int, float]]
    """Each loss is the mean over the steps since the one before it."""
    held_out: list[tuple[int, float]] = []
    """The loss on held-out rows after each epoch; empty if the stage does not stop early."""

    @classmethod
    def of(cls, title: str, log: Iterable[Mapping[str, Any]]) -> Self:
        """Read the log of transformers' Trainer. Losses that are not finite are left out."""
        entries = list(log)
        return cls(
            title=title,
            training=_thinned(_losses(entries, "loss")),
            held_out=_losses(entries, "eval_loss"),
        )


def write_curve(folder: Path, curve: Curve) -> None:
    """Write the curve into the stage's folder of checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, curve.model_dump_json())


def read_curve(folder: Path) -> dict[str, Any] | None:
    """Return the curve in a stage's folder as JSON; None if the stage left none."""
    file = folder / FILE
    found: dict[str, Any] | None = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    )
    return found


def _losses(log: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    found = [(int(each["step"]), float(each[key])) for each in log if key in each]
    return [(step, loss) for step, loss in found if abs(loss) < float("inf")]


def _thinned(losses: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average neighbouring losses until at most MOST_POINTS are left. Each keeps the step of its last."""
    size = -(-len(losses) // MOST_POINTS)
    if size <= 1:
        return losses
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
