"""How validation rows (and test rows, where no file holds them) are split off the training rows."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.recipe.values import Column, Strict


class SplitRecipe(Strict):
    """How rows are held out of the training rows."""

    by: Literal["label", "random", "group", "time"] = "label"
    """`label`: stratified by the first ensemble's label. `group`: rows with one value of `column` stay together.
    `time`: the latest rows by `column` are held out, with what has one of their texts. Equal texts are never parted."""
    column: Column | None = None
    """The group or the time; members do not see it."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of all rows held out for the report where `test` names no file."""

    @model_validator(mode="after")
    def _column_fits(self) -> Self:
        if (self.by in ("group", "time")) != (self.column is not None):
            raise ValueError("column goes with `by: group` and `by: time`, and only with them")
        return self
