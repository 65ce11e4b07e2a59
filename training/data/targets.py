"""Right answers as numbers: what stands in a task's column, for training, fitting and evaluation."""

import math
from collections.abc import Sequence

import numpy as np

from serve.fusion.fitting.fit import Targets
from serve.manifest import Task
from training.recipe import RecipeError
from training.recipe.values import SEPARATOR, spelled


def labels_in(task: Task, cell: str) -> list[str]:
    """The labels of one cell, by their one spelling: one in classification, any number in multilabel, where lists of
    JSON and Parquet come joined, too; none for a task without labels."""
    parts = {"classification": [cell], "multilabel": cell.split(SEPARATOR)}.get(task, [])
    return [label for part in parts if (label := spelled(part))]


def known_labels(task: Task, cells: Sequence[str]) -> list[str]:
    """All labels that occur, sorted; none for a task without labels."""
    return sorted({label for cell in cells for label in labels_in(task, cell)})


def unknown_label(task: Task, labels: Sequence[str], cells: Sequence[str]) -> str | None:
    """The first label, in sorted order, that occurs and is not among `labels`."""
    known = set(map(spelled, labels))
    return next((label for label in known_labels(task, cells) if label not in known), None)


def targets(task: Task, labels: Sequence[str], cells: Sequence[str], rows: str) -> Targets:
    """Label indices [N] (classification), whether each label is the row's [N, C] (multilabel), or values [N]
    (regression).

    `rows` names them in the message of the RecipeError for a label that is not one of `labels`, or no number.
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
            "two labels differ only in the space around them or in their Unicode form: "
            f"{_alike(labels)}; rows cannot tell them apart"
        )
    if task == "classification":
        return np.array([index[spelled(cell)] for cell in cells], dtype=np.int64)
    sets = np.zeros((len(cells), len(labels)), dtype=np.bool_)
    for row, cell in enumerate(cells):
        sets[row, [index[label] for label in labels_in(task, cell)]] = True
    return sets


def _alike(labels: Sequence[str]) -> str:
    """The first labels of one spelling."""
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
