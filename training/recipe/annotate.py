"""The recipe's part on labels for rows that have none: from an ensemble, rules or several annotators."""

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from training.recipe.source import Sources
from training.recipe.values import Column, Label, RecipePath, Strict


class Teacher(Strict):
    """The ensemble of a bundle whose fused answers are the labels."""

    bundle: RecipePath
    """The bundle's folder."""
    ensemble: str
    """The ensemble's name."""
    member: str | None = None
    """Use the answers of this member alone."""


class Rule(Strict):
    """A weak-label rule: texts in which the pattern is found get the label. Case is ignored."""

    label: Label
    """The label that matching texts get."""
    pattern: str
    """A regular expression of Python's `re`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"the pattern {pattern!r} is not a regular expression: {error}"
            ) from None
        return pattern


class AnnotateRecipe(Strict):
    """Fills one label column; exactly one of `teacher`, `rules` and `annotators`."""

    label: Column
    """The column to fill."""
    unlabelled: Sources | None = None
    """Rows without labels; those that get a label are added to the training rows."""
    teacher: Teacher | None = None
    """An ensemble whose answers are the labels."""
    rules: Annotated[list[Rule], Field(min_length=1)] | None = None
    """Weak-label rules. The label with most votes wins; its share of the votes is the confidence."""
    annotators: Annotated[list[Column], Field(min_length=2)] | None = None
    """Columns of `unlabelled` with the labels of each annotator; an empty cell is no opinion."""
    confidence: float = Field(0.9, ge=0, le=1)
    """Labels with a lower confidence go into the review queue."""
    reviewed: RecipePath | None = None
    """The file that `choir annotate` wrote. Its labels replace others, and rows with rejected texts leave."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = ("teacher", "rules", "annotators")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(ways)} (given: {', '.join(given)})")
        if bool(given) != (self.unlabelled is not None):
            raise ValueError("unlabelled goes with one of teacher, rules and annotators")
        if not given and self.reviewed is None:
            raise ValueError("give unlabelled rows and who labels them, or a reviewed file")
        return self
