"""An ensemble's manifest before its fusion is fitted."""

from collections.abc import Sequence

from serve.manifest import Ensemble, FusionSpec, Member
from training.recipe import EnsembleRecipe


def draft(recipe: EnsembleRecipe, members: Sequence[Member], labels: Sequence[str]) -> Ensemble:
    """Return the manifest of version 1 of the recipe's ensemble, with these members and a fusion that is not fitted."""
    method = recipe.fusion.options.method
    return Ensemble(
        format=1,
        name=recipe.name,
        version=1,
        task=recipe.task,
        members=list(members),
        fusion=FusionSpec(
            # A ranker is fitted later.
            method=method
            if recipe.task == "generation" and method not in ("best", "stack")
            else "average",
            extract=recipe.extract,
        ),
        labels=list(labels) or None,
        template=recipe.template,
        verbalizers=recipe.verbalizers,
        label_scoring=recipe.label_scoring,
        prompts=recipe.prompts,
        on_member_error=recipe.on_member_error,
    )
