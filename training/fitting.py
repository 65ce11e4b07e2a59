"""Fusion fitted on validation rows that no member was trained on: weights, stacker, choice of method, temperature."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Ensemble, FusionSpec
from serve.fusion.fuse import Fused, Fusion
from serve.fusion.measures import log_loss
from serve.fusion.stack import LinearStack, Stack
from serve.fusion.temperature import fit_temperature, temper
from serve.fusion.weights import merit_weights, greedy_weights
from training.recipe import ClassificationMethod, FusionRecipe

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STACK_FILE = "stack.json"


@dataclass(frozen=True)
class Fitted:
    """A fitted fusion, and what each method says about the validation rows when it was fitted on the others."""

    ensemble: Ensemble
    """The manifest with weights, method and temperature."""
    stack: Stack | None
    validation: Mapping[str, Fused]
    """Method -> cross-fitted answers to all validation rows; tempered for the manifest's method."""


def fit_fusion(
    draft: Ensemble, recipe: FusionRecipe, probabilities: Floats, truth: Ints, seed: int
) -> Fitted:
    """Fit on member probabilities [M, N, C] for validation rows with true label indices [N].

    Raises FusionError for unsound input.
    """
    fused = _cross_fitted(draft, recipe, probabilities, truth, seed)
    method = recipe.method if recipe.method != "best" else _best(fused, truth, recipe)
    temperature = 1.0
    if recipe.temperature and method != "vote":
        temperature = fit_temperature(fused[method].probabilities, truth)
        fused[method] = replace(
            fused[method], probabilities=temper(fused[method].probabilities, temperature)
        )
    weighted, stack = _fit_members(draft, recipe, probabilities, truth)
    spec = FusionSpec(
        method=method,
        space=recipe.space if method in ("average", "weighted_average") else "probability",
        temperature=temperature,
        model="logistic_regression" if stack else None,
        parameters=f"fusion/{draft.name}/{draft.version}/{STACK_FILE}" if stack else None,
    )
    return Fitted(weighted.model_copy(update={"fusion": spec}), stack, fused)


def _cross_fitted(
    draft: Ensemble, recipe: FusionRecipe, probabilities: Floats, truth: Ints, seed: int
) -> dict[str, Fused]:
    """Each method's answers to every row, by a fit that never saw the row; no temperature."""
    from sklearn.model_selection import KFold

    folds = KFold(min(recipe.folds, len(truth)), shuffle=True, random_state=seed)
    order: list[Ints] = []
    parts: dict[str, list[Fused]] = {method: [] for method in _methods(recipe)}
    for fitting, held_out in folds.split(truth):
        fusion = Fusion(*_fit_members(draft, recipe, probabilities[:, fitting], truth[fitting]))
        order.append(held_out)
        for method, fused in parts.items():
            fused.append(fusion(probabilities[:, held_out], method=method))
    back = np.argsort(np.concatenate(order))
    return {method: _joined(fused, back) for method, fused in parts.items()}


def _joined(parts: list[Fused], order: Ints) -> Fused:
    return Fused(
        probabilities=np.concatenate([part.probabilities for part in parts])[order],
        entropy=np.concatenate([part.entropy for part in parts])[order],
        disagreement=np.concatenate([part.disagreement for part in parts])[order],
        winners=np.concatenate([part.winners for part in parts])[order],
    )


def _fit_members(
    draft: Ensemble, recipe: FusionRecipe, probabilities: Floats, truth: Ints
) -> tuple[Ensemble, Stack | None]:
    if recipe.weights == "accuracy":
        weights = merit_weights(probabilities, truth)
    else:
        weights = greedy_weights(probabilities, truth, metric=recipe.criterion, space=recipe.space)
    members = [
        member.model_copy(update={"weight": round(float(weight), 6)})
        for member, weight in zip(draft.members, weights, strict=True)
    ]
    ensemble = draft.model_copy(update={"members": members})
    stack = LinearStack.fit(probabilities, truth, ensemble) if "stack" in _methods(recipe) else None
    return ensemble, stack


def _methods(recipe: FusionRecipe) -> list[ClassificationMethod]:
    """The candidates, and the method that was asked for."""
    if recipe.method == "best" or recipe.method == "product":
        return recipe.candidates
    return list(dict.fromkeys([*recipe.candidates, recipe.method]))


def _best(fused: Mapping[str, Fused], truth: Ints, recipe: FusionRecipe) -> ClassificationMethod:
    """The candidate with the best score after its own temperature; equals go to the first."""

    def loss(method: ClassificationMethod) -> float:
        answers = fused[method]
        if recipe.criterion == "accuracy":
            return -float(np.mean(answers.winners == truth))
        if method == "vote" or not recipe.temperature:
            return log_loss(answers.probabilities, truth)
        return log_loss(
            temper(answers.probabilities, fit_temperature(answers.probabilities, truth)), truth
        )

    return min(recipe.candidates, key=loss)
