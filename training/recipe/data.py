"""The recipe's part on data: where rows come from, how they are prepared, and how they are split."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.recipe.annotate import AnnotateRecipe
from training.recipe.clean import CleanRecipe
from training.recipe.source import Sources
from training.recipe.values import Column, Strict


class ExampleData(Strict):
    """Generated rows of the embedded example, instead of files."""

    train_rows: int = Field(2400, ge=1)
    """Number of training rows."""
    test_rows: int = Field(600, ge=1)
    """Number of test rows."""
    seed: int = 1
    """Seed of the generator."""


class SplitRecipe(Strict):
    """How validation rows, and test rows if no file holds them, are held out of the training rows."""

    by: Literal["label", "random", "group", "time"] = "label"
    """`label`: stratified by the first ensemble's label. `group`: rows with the same value of `column` stay together.
    `time`: the latest rows by `column` are held out. Rows with equal texts always stay together."""
    column: Column | None = None
    """The column of the group or the time; members do not see it."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of all rows that is held out as test rows, if `test` names no file."""

    @model_validator(mode="after")
    def _column_fits(self) -> Self:
        if (self.by in ("group", "time")) != (self.column is not None):
            raise ValueError("column goes with `by: group` and `by: time`, and only with them")
        return self


class DataRecipe(Strict):
    """Labelled rows, and how they become the three splits."""

    train: Sources | None = None
    """Training rows. Required unless `example` is given."""
    validation: Sources | None = None
    """Validation rows, on which the fusion is fitted; default: held out of the training rows."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows that is held out if `validation` names no file. No member is trained on them."""
    test: Sources | None = None
    """Test rows, used only for the report."""
    example: ExampleData | None = None
    """Generated support messages instead of files."""
    annotate: AnnotateRecipe | None = None
    """Labels for rows that have none."""
    clean: CleanRecipe | None = None
    """What happens to rows that should not be trained on. Default: nothing is removed, and rows that cannot be used
    stop the run."""
    split: SplitRecipe = SplitRecipe()
    """How validation and test rows are held out."""
    text: Column = "text"
    """Column of the input texts."""
    text_pair: Column | None = None
    """Heads: column of a second text. Each row is then a pair, whose texts are encoded separately (two towers)."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer inputs are cut in training; default: the base's number of positions. Evaluation cuts inputs only at the
    base's positions."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.example is None):
            raise ValueError("give either train (files) or example (the embedded generator)")
        if self.example and (self.validation or self.test or self.annotate):
            raise ValueError("example makes its own rows; leave validation, test and annotate out")
        if self.test and self.split.test_fraction:
            raise ValueError("give either test (files) or split.test_fraction")
        return self
