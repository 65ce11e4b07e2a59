"""The data: sources of labelled rows, or the embedded example's generator, and how rows are prepared."""

from typing import Self

from pydantic import Field, model_validator

from training.recipe.annotate import AnnotateRecipe
from training.recipe.clean import CleanRecipe
from training.recipe.source import Sources
from training.recipe.split import SplitRecipe
from training.recipe.values import Column, Strict


class ExampleData(Strict):
    """Rows of the embedded example's generator instead of files."""

    train_rows: int = Field(2400, ge=1)
    test_rows: int = Field(600, ge=1)
    seed: int = 1


class DataRecipe(Strict):
    """Labelled rows and their way into the three splits."""

    train: Sources | None = None
    validation: Sources | None = None
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows held out when `validation` names no file; no member is trained on it."""
    test: Sources | None = None
    example: ExampleData | None = None
    annotate: AnnotateRecipe | None = None
    clean: CleanRecipe | None = None
    """None: nothing is removed; rows that cannot be used stop the run."""
    split: SplitRecipe = SplitRecipe()
    text: Column = "text"
    text_pair: Column | None = None
    """Encoder: column of a second text; each row is then a pair, read as two towers."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer inputs are cut in training and refused nowhere else; default: the base's context."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.example is None):
            raise ValueError("give either train (files) or example (the embedded generator)")
        if self.example and (self.validation or self.test or self.annotate):
            raise ValueError("example makes its own rows; leave validation, test and annotate out")
        if self.test and self.split.test_fraction:
            raise ValueError("give either test (files) or split.test_fraction")
        return self
