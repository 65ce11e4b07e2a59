"""What all parts of a recipe use: the strict model, paths, labels and RecipeError."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from serve.errors import UserError

EventLog = Literal["tensorboard", "mlflow", "wandb"]
Column = Annotated[str, Field(min_length=1)]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


SEPARATOR = "|"
"""Separates the labels of a multilabel cell, and the parts of any other cell that is a list in its source."""


def spelled(label: str) -> str:
    """Return a label in its one spelling: without surrounding space, and composed (Unicode's NFC)."""
    return unicodedata.normalize("NFC", label).strip()


Label = Annotated[str, AfterValidator(spelled), Field(min_length=1)]


class RecipeError(UserError, ValueError):
    """The recipe, or the data that it names, cannot be used. The message is one sentence for the recipe's author."""


def fill_variables(value: str) -> str:
    """Replace `${NAME}` and `${NAME:-default}` by environment variables. Raises RecipeError if one is not set."""

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise RecipeError(f"the environment variable {match[1]} is not set")
        return found

    return _VARIABLE.sub(variable, value)


def _expand(value: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(folder / fill_variables(str(value))))


RecipePath = Annotated[Path, AfterValidator(_expand)]


class Strict(BaseModel):
    """A part of a recipe: unknown keys are refused, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
