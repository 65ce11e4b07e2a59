"""Which rows train the members, which fit the fusion, and which judge both."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from training.data.steps import content_digest, digest
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Splits:
    """Disjoint rows: `train` for members, `validation` for fusion alone, `test` for the report alone."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    groups: Sequence[str] | None = None
    """The group of each validation row, where rows were split by group: a fusion's folds keep them together, too."""

    def digest(self) -> str:
        """SHA-256 of the rows of all three."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        return digest(map(content_digest, parts))


def random_split(rows: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices kept and held out, drawn without regard to anything."""
    return stratified_split([""] * rows, fraction, seed)


def stratified_split(
    strata: Sequence[str], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices kept and held out; of each stratum about `fraction` is held out, and at least one row is kept."""
    rng = np.random.default_rng(seed)
    groups = _groups(strata)
    held_out: list[int] = []
    for stratum in sorted(groups):
        rows = rng.permutation(groups[stratum])
        count = min(round(len(rows) * fraction), len(rows) - 1)
        held_out += rows[:count].tolist()
    return _kept_and(held_out, len(strata))


def grouped_split(groups: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices kept and held out; whole groups are held out, in random order, until about `fraction` of the rows is.

    Raises RecipeError where fewer than two groups exist.
    """
    rows = _groups(groups)
    if len(rows) < 2:
        raise RecipeError("data.split: all rows are of one group; none of it can be held out")
    wanted = max(1, round(len(groups) * fraction))
    held_out: list[int] = []
    order = np.random.default_rng(seed).permutation(sorted(rows)).tolist()
    for group in order[:-1]:
        # The group that crosses the line is held out if that comes closer to it.
        if held_out and len(held_out) + len(rows[group]) / 2 > wanted:
            break
        held_out += rows[group]
    return _kept_and(held_out, len(groups))


def time_split(times: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Indices kept and held out: the latest `fraction`, rows of one time together.

    Times are numbers, or ISO 8601 dates of one form, which sort as texts. Raises RecipeError where all are equal.
    """
    keys = _comparable(times)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    start = len(keys) - max(1, round(len(keys) * fraction))
    while 0 < start < len(keys) and keys[order[start]] == keys[order[start - 1]]:
        start -= 1
    if start == 0:
        raise RecipeError("data.split: too many rows share one time; none of them can be held out")
    return _kept_and(order[start:], len(times))


def out_of_fold_plan(
    strata: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The fold of each row [N]: rows of a group share one, and strata are spread evenly (scikit-learn's
    StratifiedGroupKFold and StratifiedKFold)."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rare = {stratum for stratum, rows in _groups(strata).items() if len(rows) < folds}
    # Strata of fewer rows than folds cannot be spread; together they can.
    spread = ["" if stratum in rare else f"={stratum}" for stratum in strata]
    if spread.count("") < folds and "" in spread:
        largest = max(set(spread) - {""}, key=spread.count, default="")
        spread = [stratum or largest for stratum in spread]
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    plan = np.empty(len(strata), dtype=np.int64)
    parts = kind(folds, shuffle=True, random_state=seed).split(strata, spread, groups)
    for fold, (_, held_out) in enumerate(parts):
        plan[held_out] = fold
    return plan


def fit_folds(
    folds: int, rows: int, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """The fold of each validation row [N] that a fusion is fitted and judged by: rows of a group share one, if there
    are several groups; else scikit-learn's KFold."""
    from sklearn.model_selection import KFold

    number = min(folds, len(set(groups))) if groups is not None else 1
    if number >= 2:
        return out_of_fold_plan([""] * rows, number, seed, groups)
    plan = np.empty(rows, dtype=np.int64)
    parts = KFold(min(folds, rows), shuffle=True, random_state=seed).split(plan)
    for fold, (_, held_out) in enumerate(parts):
        plan[held_out] = fold
    return plan


def repeated(weights: Sequence[float], seed: int) -> list[int]:
    """Indices of rows that are used `weights` [N] times, in order: of the rows of weight 1.5, all once and half of
    them, drawn at random, once more."""
    rng = np.random.default_rng(seed)
    values = np.asarray(weights, dtype=np.float64)
    times = np.floor(values).astype(np.int64)
    for weight in np.unique(values).tolist():
        rows = np.flatnonzero(values == weight)
        extra = round((weight % 1) * len(rows))
        times[rng.choice(rows, size=extra, replace=False)] += 1
    indices: list[int] = np.repeat(np.arange(len(values)), times).tolist()
    return indices


def bag(rows: int, share: float | Literal["bootstrap"], seed: int) -> list[int]:
    """Indices of one member's training rows, sorted: a share without replacement, or a bootstrap sample."""
    rng = np.random.default_rng(seed)
    if share == "bootstrap":
        return sorted(rng.integers(0, rows, size=rows).tolist())
    return sorted(rng.choice(rows, size=max(1, round(rows * share)), replace=False).tolist())


def _groups(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


def _kept_and(held_out: Sequence[int], rows: int) -> tuple[list[int], list[int]]:
    held = set(held_out)
    return [index for index in range(rows) if index not in held], sorted(held)


def _comparable(times: Sequence[str]) -> Sequence[float] | Sequence[str]:
    try:
        return [float(time) for time in times]
    except ValueError:
        return times
