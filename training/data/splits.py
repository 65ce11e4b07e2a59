"""Which rows train the members, which fit the fusion, and which judge both."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset

from training.data.loading import from_rows, load_rows
from training.example import messages
from training.recipe import Recipe


@dataclass(frozen=True)
class Splits:
    """Disjoint rows: `train` for members, `validation` for fusion alone, `test` for the report alone."""

    train: Dataset
    validation: Dataset
    test: Dataset | None


def load_splits(recipe: Recipe, cache: Path) -> Splits:
    """The recipe's rows; the same recipe always gives the same splits. Raises RecipeError."""
    data = recipe.data
    columns = recipe_columns(recipe)
    known = list(dict.fromkeys([*columns, *recipe.base.columns]))
    test: Dataset | None = None
    if data.example:
        rows, seed = data.example, data.example.seed
        train = from_rows(messages.rows("train", rows.train_rows, seed), known)
        test = from_rows(messages.rows("test", rows.test_rows, seed), columns)
    else:
        train = load_rows(data.train or [], known, cache)
        test = load_rows(data.test, columns, cache) if data.test else None
    if data.validation:
        return Splits(train, load_rows(data.validation, columns, cache), test)
    label = next((ensemble.label for ensemble in recipe.ensembles if ensemble.label), None)
    strata = list(train[label]) if label else [""] * len(train)
    kept, held_out = stratified_split(strata, data.validation_fraction, recipe.seed)
    return Splits(train.select(kept), train.select(held_out), test)


def recipe_columns(recipe: Recipe) -> list[str]:
    """Every column that some ensemble reads, the text first; a base from scratch may read more."""
    columns = [recipe.data.text]
    for ensemble in recipe.ensembles:
        columns += [column for column in (ensemble.label, ensemble.target) if column]
    return list(dict.fromkeys(columns))


def stratified_split(
    strata: Sequence[str], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices kept and held out; of each stratum about `fraction` is held out, and at least one row is kept."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        groups[stratum].append(index)
    held_out: list[int] = []
    for stratum in sorted(groups):
        rows = rng.permutation(groups[stratum])
        count = min(round(len(rows) * fraction), len(rows) - 1)
        held_out += rows[:count].tolist()
    held = set(held_out)
    return [index for index in range(len(strata)) if index not in held], sorted(held)


def bag(rows: int, share: float | Literal["bootstrap"], seed: int) -> list[int]:
    """Indices of one member's training rows, sorted: a share without replacement, or a bootstrap sample."""
    rng = np.random.default_rng(seed)
    if share == "bootstrap":
        return sorted(rng.integers(0, rows, size=rows).tolist())
    return sorted(rng.choice(rows, size=max(1, round(rows * share)), replace=False).tolist())
