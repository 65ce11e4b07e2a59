"""Makes the three splits. It holds validation and test rows out of the training rows if no file has them, and compares
each pair of splits for equal or similar texts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from datasets import Dataset

from serve.terminal.words import counted
from training.data.cleaning.clean import Columns, leaked
from training.data.cleaning.families import families, numbered
from training.data.ledger import QUARANTINE, Ledger
from training.data.splits import hold_out
from training.data.steps import FAMILY, Count, Outcome, Overlap, StepCache
from training.recipe.data import DataRecipe
from training.recipe.values import RecipeError

PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))
"""The pairs of splits that are compared. Rows leave the first one, because the second one judges it."""
NAMES = {"train": "training", "validation": "validation", "test": "test"}
NEAR_ENOUGH = 0.5
"""How far the number of held-out rows may be from the wanted number, relative to it, before families are made
smaller."""


class Splitter:
    """Splits the rows of one recipe. No text is in two splits, unless a note says so."""

    def __init__(
        self, data: DataRecipe, meaning: Columns, seed: int, cache: StepCache, ledger: Ledger
    ) -> None:
        self._data, self._meaning, self._seed = data, meaning, seed
        self._cache, self._ledger = cache, ledger
        self._policy: Literal["quarantine", "fail", "keep"] | None = None
        if data.clean:
            self._policy = data.clean.leakage
        near = data.clean is not None and data.clean.duplicates == "near"
        self._similarity = data.clean.similarity if data.clean and near else None

    def split(self, given: Mapping[str, Dataset | None]) -> dict[str, Dataset]:
        """Return the splits by name. Splits that the recipe asks for and that are not in `given` are held out of
        `train`.

        Training and validation rows get a column with their families. Raises RecipeError if too few rows are left."""
        parts = {split: rows for split, rows in given.items() if rows is not None}
        compared: list[tuple[str, str]] = []
        if self._policy in ("quarantine", "fail"):
            # Rows that leave must not be held out later, so given splits are compared first.
            parts = self._apart(parts, compared)
            compared = [pair for pair in PAIRS if set(pair) <= set(parts)]
        for split, rows in parts.items():
            self._accept(rows, split, sum(left.split == split for left in self._ledger.left))
        fractions = {
            "test": self._data.split.test_fraction,
            "validation": self._data.validation_fraction,
        }
        asked = {split: share for split, share in fractions.items() if share and split not in parts}
        share = next(iter(asked.values()), self._data.validation_fraction)
        parts["train"] = self._with_families(parts["train"], share)
        if "validation" in parts:
            own = self._families(parts["validation"], self._similarity, None)
            parts["validation"] = parts["validation"].add_column(FAMILY, own)
        for split, share in asked.items():
            parts["train"], parts[split] = self._held_out(parts["train"], share, split)
        before = {split: len(rows) for split, rows in parts.items()}
        parts = self._apart(parts, compared)
        for split, rows in parts.items():
            self._accept(rows, split, before[split] - len(rows))
        return parts

    def apart_from(self, train: Dataset, held: Mapping[str, Dataset]) -> Dataset:
        """Return training rows, with their families, for which validation and test rows are given that stay as they
        are.

        Rows that share a text with `held` leave, unless `data.clean` says otherwise. Raises RecipeError if too few rows
        are left."""
        self._policy = self._policy or "quarantine"
        before = len(train)
        for split, rows in held.items():
            train = self._without_leaks(train, rows, "train", split)
        self._accept(train, "train", before - len(train))
        return self._with_families(train, self._data.validation_fraction)

    def _apart(
        self, parts: Mapping[str, Dataset], compared: Sequence[tuple[str, str]]
    ) -> dict[str, Dataset]:
        """Compare the splits, except the pairs in `compared`. Remove shared rows, or note that they stay."""
        found = dict(parts)
        for split, other in PAIRS:
            if split in found and other in found and (split, other) not in compared:
                found[split] = self._without_leaks(found[split], found[other], split, other)
        return found

    def _without_leaks(self, rows: Dataset, judge: Dataset, split: str, other: str) -> Dataset:
        outcome = self._cache.outcome(
            "leakage",
            {"split": split, "similarity": self._similarity, "columns": str(self._meaning)},
            [rows, judge],
            partial(leaked, rows, judge, self._meaning, split, self._similarity),
        )
        leave = self._policy == "quarantine"
        count = len(outcome.left)
        self._ledger.overlaps.append(Overlap(split, other, count, leave, self._similarity))
        if count and self._policy == "fail":
            first = outcome.left[0]
            raise RecipeError(
                f"{counted(count, f'{split} row leaks', f'{split} rows leak')}: of {first.origin}, {first.reason}"
            )
        if leave:
            return self._ledger.take("leakage", split, len(rows), outcome)
        if count:
            remedy = "they were kept" if self._policy else "`data.clean` would take them out"
            self._ledger.notes.append(
                f"{count} of {len(rows)} {NAMES[split]} rows have a text of the {other} rows; {remedy}"
            )
        return rows

    def _accept(self, rows: Dataset, split: str, lost: int) -> None:
        """Raise RecipeError if too many rows of a split have left. `lost` is their number."""
        limit = self._data.clean.max_loss if self._data.clean else 1
        if not len(rows) or lost > limit * (lost + len(rows)):
            self._ledger.write()
            raise RecipeError(
                f"{len(rows)} of {lost + len(rows)} {split} rows are left; see {self._ledger.folder / QUARANTINE}, "
                "and raise data.clean.max_loss if that is right"
            )

    def _with_families(self, train: Dataset, fraction: float) -> Dataset:
        """Add the families of the training rows.

        Families should join all similar texts, and groups that share a text. If these families are too large to hold
        out about `fraction` of the rows, smaller families are used, and a note says so."""
        split = self._data.split
        by_group = split.by == "group"
        groups = [split.group(str(each)) for each in train[str(split.column)]] if by_group else None
        least = self._families(train, None, groups) if groups is None else numbered(groups)
        larger = {
            **({"similar": self._similarity} if self._similarity else {}),
            **({"equal": None} if groups is not None else {}),
        }
        for what, similarity in larger.items():
            found = self._families(train, similarity, groups)
            if self._distance(found, fraction) <= max(NEAR_ENOUGH, self._distance(least, fraction)):
                return train.add_column(FAMILY, found)
            self._ledger.notes.append(
                f"{what} texts join {len(train)} training rows into {len(set(found))} families, one of which is too "
                "large to be held out or kept as a whole; such texts may be in two splits"
            )
        return train.add_column(FAMILY, least)

    def _families(
        self, rows: Dataset, similarity: float | None, groups: Sequence[str] | None
    ) -> list[int]:
        texts = self._meaning.inputs(rows)
        if similarity is None:
            return families(texts, None, groups)
        outcome = self._cache.outcome(
            "families",
            {"similarity": similarity, "columns": str(self._meaning), "groups": groups},
            [rows],
            lambda: Outcome(
                rows.add_column(FAMILY, families(texts, similarity, groups, self._meaning.images))
            ),
        )
        return list(outcome.rows[FAMILY])

    def _distance(self, families: Sequence[int], fraction: float) -> float:
        """Return how far the number of rows that can be held out is from the wanted number, relative to it."""
        wanted = max(1, round(len(families) * fraction))
        _, held = hold_out(families, fraction, self._seed)
        return abs(len(held) - wanted) / wanted

    def _held_out(self, rows: Dataset, fraction: float, split: str) -> tuple[Dataset, Dataset]:
        by, column, labels = self._data.split.by, self._data.split.column, self._meaning.labels
        kept, held = hold_out(
            list(rows[FAMILY]),
            fraction,
            self._seed,
            strata=list(rows[labels[0]]) if by == "label" and labels else None,
            times=list(rows[str(column)]) if by == "time" else None,
        )
        if not held and len(set(rows[FAMILY])) == 1:
            what = "group" if by == "group" else "text"
            raise RecipeError(
                f"data.split: all {len(rows)} training rows are of one {what}; none can be held out"
            )
        if not held:
            raise RecipeError(
                f"{len(rows)} training rows are too few to hold out {fraction:g} of them for {split}; name a file in "
                f"data.{split}"
            )
        note = f"{len(held)} held out for {split}"
        self._ledger.counts.append(Count("train", "split", len(rows), len(kept), note))
        return rows.select(kept), rows.select(held)
