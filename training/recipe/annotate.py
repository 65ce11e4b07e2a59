"""Labels for rows that have none yet: from an ensemble, a base, rules, or several annotators."""

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from training.recipe.source import Sources
from training.recipe.values import Column, Label, RecipePath, Strict


class Teacher(Strict):
    """An ensemble of a bundle whose fused answers are the labels."""

    bundle: RecipePath
    """The bundle's folder."""
    ensemble: str
    """The ensemble's name."""
    member: str | None = None
    """One member alone instead of all of them."""


class Rule(Strict):
    """A weak-label function: texts that the pattern finds, whatever the case, get the label."""

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
            raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None
        return pattern


class AnnotateRecipe(Strict):
    """Fills one label column; exactly one of `teacher`, `rules` and `annotators`."""

    label: Column
    """The column to fill."""
    unlabelled: Sources | None = None
    """Rows with a text alone; those that get a label are added to the training rows."""
    teacher: Teacher | None = None
    """An ensemble whose answers are the labels."""
    rules: Annotated[list[Rule], Field(min_length=1)] | None = None
    """Weak-label rules, whose majority wins; a label's confidence is its share of the votes."""
    annotators: Annotated[list[Column], Field(min_length=2)] | None = None
    """Columns of `unlabelled` that hold what each annotator said; an empty cell is no opinion."""
    confidence: float = Field(0.9, ge=0, le=1)
    """Labels below it go into the review queue."""
    reviewed: RecipePath | None = None
    """What `choir annotate` wrote: its labels win, and texts that were rejected leave."""

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
