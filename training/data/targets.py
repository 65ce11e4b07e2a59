"""Reads the cells of a task's answers as labels or numbers, for training, fitting and evaluation."""

import math
from collections.abc import Sequence

import numpy as np

from serve.fusion.fitting.fit import Targets
from serve.manifest import Task
from training.recipe import RecipeError
from training.recipe.values import SEPARATOR, spelled


def labels_in(task: Task, cell: str) -> list[str]:
    """Return the labels of one cell in their one spelling: one in classification, any number in multilabel, none for a
    task without labels."""
    parts = {"classification": [cell], "multilabel": cell.split(SEPARATOR)}.get(task, [])
    return [label for part in parts if (label := spelled(part))]


def known_labels(task: Task, cells: Sequence[str]) -> list[str]:
    """Return all labels in the cells, sorted; none for a task without labels."""
    return sorted({label for cell in cells for label in labels_in(task, cell)})


def unknown_label(task: Task, labels: Sequence[str], cells: Sequence[str]) -> str | None:
    """Return the first label in the cells, in sorted order, that is not among `labels`; None if all are."""
    known = set(map(spelled, labels))
    return next((label for label in known_labels(task, cells) if label not in known), None)


def targets(task: Task, labels: Sequence[str], cells: Sequence[str], rows: str) -> Targets:
    """Return label indices [N] (classification), which labels each row has [N, C] (multilabel), or values [N]
    (regression).

    Raises RecipeError if a label is not one of `labels`, or a value is not a number; `rows` names the rows in its
    message.
    """
    if task == "regression":
        return np.array(
            [_number(cell, n, rows) for n, cell in enumerate(cells, 1)], dtype=np.float64
        )
    stranger = unknown_label(task, labels, cells)
    if stranger is not None:
        raise RecipeError(f"{rows}: the label {stranger!r} is not one of the {len(labels)} labels")
    index = {spelled(label): number for number, label in enumerate(labels)}
    if len(index) < len(labels):
        raise RecipeError(
            "two labels differ only in surrounding space or in their Unicode form, so rows cannot tell them apart: "
            f"{_alike(labels)}"
        )
    if task == "classification":
        return np.array([index[spelled(cell)] for cell in cells], dtype=np.int64)
    sets = np.zeros((len(cells), len(labels)), dtype=np.bool_)
    for row, cell in enumerate(cells):
        sets[row, [index[label] for label in labels_in(task, cell)]] = True
    return sets


def _alike(labels: Sequence[str]) -> str:
    """Return the first labels that have the same spelling, for a message."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(spelled(label), []).append(ascii(label))
    return " and ".join(next(group for group in groups.values() if len(group) > 1))


def _number(cell: str, row: int, rows: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{rows}: row {row} holds {cell!r} where a number is expected")
    return value
