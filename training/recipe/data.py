"""The recipe's part on data: where rows come from, how they are prepared, and how they are split."""

from typing import Literal, Self

from pydantic import Field, model_validator

from serve.fusion.answers import extracted
from serve.manifest import Extract
from training.recipe.annotate import AnnotateRecipe
from training.recipe.clean import CleanRecipe
from training.recipe.source import Sources
from training.recipe.values import Column, Strict

DIGITS = 1797
"""How many images scikit-learn's digits are."""


class ExampleData(Strict):
    """Rows that Choir brings, instead of files."""

    kind: Literal["messages", "digits"] = "messages"
    """`messages`: generated messages of customers, with `team`, `text`, `intent`, `note` and `reply`. `digits`:
    scikit-learn's 1,797 images of handwritten digits, with `image` and `digit` (`zero` to `nine`)."""
    train_rows: int = Field(2400, ge=1)
    """Number of training rows."""
    test_rows: int = Field(600, ge=1)
    """Number of test rows."""
    seed: int = 1
    """Seed of the generator, or of the order of the digits."""

    @model_validator(mode="after")
    def _there_are_enough(self) -> Self:
        asked = self.train_rows + self.test_rows
        if self.kind == "digits" and asked > DIGITS:
            raise ValueError(
                f"there are {DIGITS:,} digits, and train_rows and test_rows ask for {asked:,}"
            )
        return self


class SplitRecipe(Strict):
    """How validation rows, and test rows if no file holds them, are held out of the training rows."""

    by: Literal["label", "random", "group", "time"] = "label"
    """`label`: stratified by the first ensemble's label. `group`: rows with the same value of `column` stay together.
    `time`: the latest rows by `column` are held out. Rows with equal texts always stay together."""
    column: Column | None = None
    """The column of the group or the time; members do not see it, unless it is their input too."""
    extract: Extract | None = None
    """`group`: the part of the cell that names the group, such as a customer's name in a text; default: the whole cell.
    Rows without it are one group."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of all rows that is held out as test rows, if `test` names no file."""

    @model_validator(mode="after")
    def _column_fits(self) -> Self:
        if (self.by in ("group", "time")) != (self.column is not None):
            raise ValueError("column goes with `by: group` and `by: time`, and only with them")
        if self.extract is not None and self.by != "group":
            raise ValueError("extract goes with `by: group`, and only with it")
        return self

    def group(self, cell: str) -> str:
        """Return the group that a cell of `column` names."""
        return cell if self.extract is None else extracted(cell, self.extract) or ""


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
    """Rows that Choir brings, instead of files."""
    annotate: AnnotateRecipe | None = None
    """Labels for rows that have none."""
    clean: CleanRecipe | None = None
    """What happens to rows that should not be trained on. Default: nothing is removed, and rows that cannot be used
    stop the run."""
    split: SplitRecipe = SplitRecipe()
    """How validation and test rows are held out."""
    text: Column = "text"
    """Column of the input texts."""
    image: Column | None = None
    """Over a base that reads images: column of the input images. A cell is a path relative to the data file, a data
    URL, the bytes of a PNG, JPEG or WebP, or an image of `datasets`. It takes the place of `text`."""
    image_text: Column | None = None
    """Answers by text over images: column of a text beside each image, such as a question about it."""
    text_pair: Column | None = None
    """Heads: column of a second text. Each row is then a pair, whose texts are encoded separately (two towers)."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer inputs are cut in training; default: the base's number of positions. Evaluation cuts inputs only at the
    base's positions."""

    @property
    def input(self) -> str:
        """The column of the inputs: texts, or images."""
        return self.image or self.text

    @property
    def inputs(self) -> list[str]:
        """The columns of the inputs: two if rows are pairs of texts, or images with a text each."""
        return [self.input, *([self.second] if self.second else [])]

    @property
    def second(self) -> str | None:
        """The column of the second texts of pairs, or of the texts beside images; None if inputs are of one column."""
        return self.image_text or self.text_pair

    @property
    def images(self) -> list[str]:
        """The columns of images."""
        return [self.image] if self.image else []

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        if self.image is None:
            if self.image_text:
                raise ValueError(
                    "image_text stands beside an image; name the images' column in image"
                )
            return self
        others = {
            "text": self.text != "text",
            "text_pair": self.text_pair,
            "annotate": self.annotate,
        }
        if other := next((name for name, given in others.items() if given), None):
            raise ValueError(f"image takes the place of texts; leave {other} out")
        if self.clean and (self.clean.languages or self.clean.label_errors != "keep"):
            raise ValueError(
                "clean.languages and clean.label_errors read texts; leave them out where rows are images"
            )
        if self.clean and self.clean.duplicates == "near" and self.image_text:
            raise ValueError(
                "clean.duplicates: near compares images alone, and two texts about one image differ; write exact"
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.example is None):
            raise ValueError("give either train (files) or example (rows that Choir brings)")
        if self.example and (self.validation or self.test or self.annotate):
            raise ValueError("example makes its own rows; leave validation, test and annotate out")
        if self.test and self.split.test_fraction:
            raise ValueError("give either test (files) or split.test_fraction")
        return self
