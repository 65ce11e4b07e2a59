"""Right answers as numbers: what stands in a task's column, for training, fitting and evaluation."""

import math
from collections.abc import Sequence

import numpy as np

from serve.fusion.fitting.fit import Targets
from serve.manifest import Task
from training.data.collect import SEPARATOR
from training.recipe import RecipeError


def labels_in(cell: str) -> list[str]:
    """The labels of one multilabel cell, which may be none. Lists of JSON and Parquet come joined, too."""
    return [label.strip() for label in cell.split(SEPARATOR) if label.strip()]


def known_labels(task: Task, cells: Sequence[str]) -> list[str]:
    """All labels that occur, sorted; none for a task without labels."""
    if task == "multilabel":
        return sorted({label for cell in cells for label in labels_in(cell)})
    return sorted(set(cells)) if task == "classification" else []


def unknown_label(task: Task, labels: Sequence[str], cells: Sequence[str]) -> str | None:
    """The first label, in sorted order, that occurs and is not among `labels`."""
    return next((label for label in known_labels(task, cells) if label not in set(labels)), None)


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
    index = {label: number for number, label in enumerate(labels)}
    if task == "classification":
        return np.array([index[cell] for cell in cells], dtype=np.int64)
    sets = np.zeros((len(cells), len(labels)), dtype=np.bool_)
    for row, cell in enumerate(cells):
        sets[row, [index[label] for label in labels_in(cell)]] = True
    return sets


def _number(cell: str, row: int, rows: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"{rows}: row {row} holds {cell!r} where a number is expected")
    return value
