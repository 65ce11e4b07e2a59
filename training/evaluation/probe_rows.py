"""The labelled rows that `choir bases` compares bases on: those of a file, or of a recipe after its data steps."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.loading import load_rows
from training.preparation import load_splits
from training.recipe import EnsembleRecipe, Recipe, RecipeError, load_recipe


@dataclass(frozen=True)
class ProbeRows:
    """Texts with one label each."""

    source: str
    """The file, for messages."""
    column: str
    """The column of the labels, for messages."""
    texts: Sequence[str]
    labels: Sequence[str]
    template: str
    """The prompt for causal bases."""
    note: str = ""
    """What was changed when the rows were read."""


def rows_of_file(data: Path, text: str, label: str, template: str) -> ProbeRows:
    """Return the rows of a CSV, JSON Lines or Parquet file. Raises RecipeError."""
    loaded = load_rows([data], [text, label], labels=[label])
    rows = loaded.rows
    return ProbeRows(
        data.name, label, list(rows[text]), list(rows[label]), template, note=loaded.note
    )


def rows_of_recipe(path: Path, ensemble: str | None) -> ProbeRows:
    """Return the training and validation rows of a recipe's ensemble, as `choir prepare` makes them; never its test
    rows. Without `ensemble`, it is the only one of the task classification. Raises RecipeError."""
    recipe = load_recipe(path)
    own = _classification(recipe, ensemble)
    if recipe.data.images:
        raise RecipeError("bases are compared on texts, and the recipe's rows are images")
    with tempfile.TemporaryDirectory(prefix="choir-bases-") as scratch:
        known = load_splits(recipe, Path(scratch)).known
        texts, labels = list(known[recipe.data.text]), list(known[own.answer])
    return ProbeRows(path.name, own.answer, texts, labels, own.template)


def _classification(recipe: Recipe, name: str | None) -> EnsembleRecipe:
    found = [each for each in recipe.ensembles if each.task == "classification"]
    chosen = [each for each in found if name in (None, each.name)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(each.name for each in found) or "none"
    raise RecipeError(
        f"bases are compared on the rows of one classification ensemble; name it with --ensemble (the recipe has: "
        f"{names})"
    )
