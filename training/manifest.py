"""The manifest of a recipe's ensemble: before its fusion is fitted, and the version of all members."""

from collections.abc import Sequence

from serve.bundle import Bundle
from serve.manifest import TEXT_METHODS, Ensemble, FusionSpec, Member, Method
from training.recipe import EnsembleRecipe


def draft(recipe: EnsembleRecipe, members: Sequence[Member], labels: Sequence[str]) -> Ensemble:
    """Return the manifest of version 1 of the recipe's ensemble, with these members and a fusion that is not fitted."""
    asked = recipe.fusion.options.method
    method: Method = "average"
    if recipe.task == "generation" and asked != "best" and asked != "stack":
        method = asked  # a ranker is fitted later
    return Ensemble(
        format=1,
        name=recipe.name,
        version=1,
        task=recipe.task,
        members=list(members),
        fusion=FusionSpec(
            method=method, extract=recipe.extract if method in TEXT_METHODS else None
        ),
        labels=list(labels) or None,
        template=recipe.template,
        verbalizers=recipe.verbalizers,
        label_scoring=recipe.label_scoring,
        prompts=recipe.prompts,
        on_member_error=recipe.on_member_error,
    )


def whole_ensemble(bundle: Bundle, name: str) -> Ensemble:
    """Return the highest version of an ensemble among those with the most members: a recipe with `method: auto` may
    have written a smaller one above it. Raises BundleError if there is none."""
    newest = bundle.ensemble(name)
    versions = [each for each in bundle.ensembles() if each.name == name]
    return max([newest, *versions], key=lambda each: (len(each.members), each.version))
