"""The texts of the validation rows, which the run has kept; in bundles of older versions, the recipe's files have
them."""

from serve.bundle import Bundle
from serve.manifest import Ensemble
from training.evaluation.evaluation import Labelled, labelled
from training.evaluation.stored_predictions import rows_digest
from training.execution.held_rows import kept
from training.execution.run import WORK, recorded_data, recorded_recipe
from training.preparation import load_splits
from training.recipe import RecipeError

VALIDATION = "validation"
"""The name of the validation rows."""


def validation_texts(bundle: Bundle, ensemble: Ensemble) -> Labelled:
    """Return the validation rows on which the ensemble's fusion was fitted. Raises RecipeError if they cannot be read
    as they were then."""
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble.name) if recipe else None
    if recipe is not None and own is not None:
        held, unchanged = kept(bundle.path / WORK, VALIDATION), True
        if held is None:
            splits = load_splits(recipe, bundle.path / WORK)
            held, unchanged = splits.validation, splits.digest() == recorded_data(bundle.path)
        rows = labelled(held, VALIDATION, recipe, own)
        stored = bundle.validation_scores(ensemble.name).rows()
        if stored is not None and rows_digest(rows, ensemble) == stored.header.rows:
            return rows
        if stored is None and unchanged:
            return rows
    raise RecipeError(
        f"the validation rows of {ensemble.id} cannot be read as they were when {bundle.path} was made, and adapters "
        "are judged on them; use a bundle of `choir train`, with the data files in their place"
    )
