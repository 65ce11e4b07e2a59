"""The texts of the validation rows, which only the recipe's data files have."""

from serve.bundle import Bundle
from serve.manifest import Ensemble
from training.evaluation.evaluation import Labelled, labelled
from training.evaluation.stored_predictions import rows_digest
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
        splits = load_splits(recipe, bundle.path / WORK)
        rows = labelled(splits.validation, VALIDATION, recipe, own)
        stored = bundle.validation_scores(ensemble.name).rows()
        if stored is not None and rows_digest(rows, ensemble) == stored.header.rows:
            return rows
        if stored is None and splits.digest() == recorded_data(bundle.path):
            return rows
    raise RecipeError(
        f"the validation rows of {ensemble.id} cannot be read as they were when {bundle.path} was made, and adapters "
        "are judged on them; use a bundle of `choir train`, with the data files in their place"
    )
