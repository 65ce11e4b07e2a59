"""The data: files of labelled rows, or the embedded example's generator."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from training.recipe.values import Column, RecipePath, Strict

FileList = Annotated[list[RecipePath], Field(min_length=1)]


class ExampleData(Strict):
    """Rows of the embedded example's generator instead of files."""

    train_rows: int = Field(2400, ge=1)
    test_rows: int = Field(600, ge=1)
    seed: int = 1


class DataRecipe(Strict):
    """Labelled rows: files (CSV, JSON Lines or Parquet) or the embedded example's generator."""

    train: FileList | None = None
    validation: FileList | None = None
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows held out when `validation` names no file; no member is trained on it."""
    test: FileList | None = None
    example: ExampleData | None = None
    text: Column = "text"
    text_pair: Column | None = None
    """Encoder: column of a second text; each row is then a pair, read as two towers."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer inputs are cut in training and refused nowhere else; default: the base's context."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            key: _as_list(value) if key in ("train", "validation", "test") else value
            for key, value in data.items()
        }

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.example is None):
            raise ValueError("give either train (files) or example (the embedded generator)")
        if self.example and (self.validation or self.test):
            raise ValueError("example makes its own test rows; leave validation and test out")
        return self


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value
