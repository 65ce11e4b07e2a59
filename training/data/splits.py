"""Divides rows: into the three splits, into folds, into bags and for early stopping. All divisions are made here.

Rows that must stay together have the same family number (`training.data.cleaning.families`)."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from training.data.steps import content_digest, digest, visible
from training.recipe.values import RecipeError


@dataclass(frozen=True)
class Splits:
    """Disjoint rows: `train` for members, `validation` only for fusion, `test` only for the report."""

    train: Dataset
    """The columns that members read, and a column with the family of each row."""
    validation: Dataset
    test: Dataset | None
    families: Sequence[int]
    """The family of each validation row. The folds of a fusion keep families together."""

    @property
    def known(self) -> Dataset:
        """The training and validation rows: all that may be used before the test."""
        return concatenate_datasets([visible(self.train), visible(self.validation)])

    def digest(self) -> str:
        """Return the SHA-256 of the rows of all three splits."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        return digest(map(content_digest, parts))


def divide(
    families: Sequence[int],
    shares: Sequence[float],
    seed: int,
    *,
    strata: Sequence[Hashable] | None = None,
    keep: int | None = None,
) -> NDArray[np.int64]:
    """Divide rows into parts at random, and return the part of each row [N]. Families stay whole, and each part gets
    about its share of every stratum.

    In each stratum, one family after another goes to the part that lacks most rows. With `keep`, a family of which less
    than half fits there goes to the part `keep` instead, which gets at least one family of every stratum. A family
    belongs to the stratum of its first row."""
    rng = np.random.default_rng(seed)
    own = list(_rows_by(families).values())
    among = _rows_by([strata[rows[0]] if strata is not None else "" for rows in own])
    parts = np.zeros(len(families), dtype=np.int64)
    sizes = [0] * len(shares)
    for stratum in sorted(among, key=str):
        order = [own[number] for number in rng.permutation(among[stratum]).tolist()]
        rows = sum(map(len, order))
        lacking = [min(round(rows * share), rows - 1) for share in shares]
        for family in order:
            part = _part_for(len(family), lacking, sizes, keep)
            parts[family] = part
            lacking[part] -= len(family)
            sizes[part] += len(family)
        if keep is not None and all(parts[family[0]] != keep for family in order):
            parts[order[-1]] = keep
    return parts


def hold_out(
    families: Sequence[int],
    fraction: float,
    seed: int,
    *,
    strata: Sequence[Hashable] | None = None,
    times: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Hold out about `fraction` of the rows. Returns the indices of the kept and of the held-out rows; families [N]
    stay whole.

    With `strata` [N], about this fraction of each stratum is held out. With `times` [N] (numbers, or ISO 8601 dates in
    one form), the latest rows are held out: a family is as late as its latest row, and families of the same time stay
    together. Nothing is held out if all rows are of one family, or if the fraction is less than half a row. Raises
    RecipeError if too many rows have the same time."""
    if times is not None:
        return _sides(_latest(families, times, fraction))
    held = divide(families, [1 - fraction, fraction], seed, strata=strata, keep=0) == 1
    own = _rows_by(families)
    if not held.any() and len(own) > 1 and strata is None and round(len(families) * fraction):
        # Every family is larger than the wanted number of rows, so the smallest one comes closest.
        held[min(own.values(), key=len)] = True
    return _sides(held)


def fold_plan(
    families: Sequence[int],
    folds: int,
    seed: int,
    strata: Sequence[Hashable] | None = None,
) -> NDArray[np.int64]:
    """Return the fold of each row [N]. Families stay whole, and strata are spread evenly.

    There are no more folds than families. If all rows are of one family, the family is divided."""
    own = families if len(set(families)) > 1 else range(len(families))
    number = min(folds, len(set(own)))
    return divide(own, [1 / number] * number, seed, strata=strata)


def repeated(weights: Sequence[float], seed: int) -> list[int]:
    """Return the indices of rows, each as often as its weight in `weights` [N] says, in order. Rows of weight 1.5 are
    all used once, and a random half of them twice."""
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
    """Draw one member's bag: a share of the rows without replacement, or a bootstrap sample. Returns sorted indices."""
    rng = np.random.default_rng(seed)
    if share == "bootstrap":
        return sorted(rng.integers(0, rows, size=rows).tolist())
    return sorted(rng.choice(rows, size=max(1, round(rows * share)), replace=False).tolist())


def _part_for(size: int, lacking: Sequence[int], sizes: Sequence[int], keep: int | None) -> int:
    """Return the part for a family of `size` rows. If several parts lack equally many, the one with fewest rows
    wins."""
    others = [part for part in range(len(sizes)) if part != keep]
    part = max(others, key=lambda part: (lacking[part], -sizes[part]))
    return part if keep is None or lacking[part] >= size / 2 else keep


def _latest(families: Sequence[int], times: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    keys = _comparable(times)
    own = _rows_by(families)
    late = {family: max(keys[row] for row in rows) for family, rows in own.items()}
    ages = np.array([late[family] for family in families])
    first = sorted(ages.tolist())[len(ages) - max(1, round(len(ages) * fraction))]
    held: NDArray[np.bool_] = ages >= first
    if held.all():
        raise RecipeError("data.split: too many rows share one time; none can be held out")
    return held


def _rows_by(keys: Sequence[Any]) -> dict[Any, list[int]]:
    """Return the indices of the rows with each key. Keys are in the order of their first row."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        rows[key].append(index)
    return rows


def _sides(held: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def _comparable(times: Sequence[str]) -> list[float] | list[str]:
    try:
        return [float(time) for time in times]
    except ValueError:
        return list(times)
