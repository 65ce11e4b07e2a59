"""What every part of a recipe is made of: strict models, paths, labels, and the one error."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from serve.errors import UserError

Column = Annotated[str, Field(min_length=1)]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


SEPARATOR = "|"
"""Between the labels of a multilabel cell, and between the parts of any other cell that a source holds as a list."""


def spelled(label: str) -> str:
    """A label by its one spelling: without space around it, and composed (Unicode's NFC)."""
    return unicodedata.normalize("NFC", label).strip()


Label = Annotated[str, AfterValidator(spelled), Field(min_length=1)]


class RecipeError(UserError, ValueError):
    """The recipe, or data that it names, cannot be used; the message is one sentence for its author."""


def fill_variables(value: str) -> str:
    """`${NAME}` and `${NAME:-default}` replaced by environment variables; RecipeError for one that is not set."""

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
    model_config = ConfigDict(extra="forbid", frozen=True)
