"""Fusion fitted on validation rows that no member was trained on: weights, stacker, choice of method, temperature,
thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Ensemble, FusionSpec
from serve.fusion.fuse import Fused, FusedSets, FusedValues, Fusion
from serve.fusion.fused import Answers
from serve.fusion.measures import micro_f1
from serve.fusion.rules import Loss
from serve.fusion.stack import STACK_FILES, Stack, stack_of
from serve.fusion.tasks import rules_of
from serve.fusion.temperature import fit_temperature, temper
from serve.fusion.thresholds import common_threshold, label_thresholds
from serve.fusion.weights import greedy_weights, merit_weights
from serve.manifest import Method
from training.data.splits import out_of_fold_plan
from training.recipe import FusionRecipe
from training.targets import Targets

Floats = NDArray[np.float64]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows that are fitted on, and rows that the fit is judged by."""
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A fitted fusion, and what each method says about the validation rows when it was fitted on the others."""

    ensemble: Ensemble
    """The manifest with weights, method, temperature and thresholds."""
    stack: Stack | None
    validation: Mapping[str, Answers]
    """Method -> cross-fitted answers to all validation rows; tempered for the manifest's method."""


def fit_fusion(
    draft: Ensemble,
    recipe: FusionRecipe,
    outputs: Floats,
    truth: Targets,
    seed: int,
    groups: Sequence[str] | None = None,
) -> Fitted:
    """Fit on the members' outputs [M, N, C] or [M, N] for validation rows with right answers as `targets` gives them.

    Rows of one of the `groups` [N] are never judged by a fit that saw others of it. Raises FusionError for unsound
    input.
    """
    folds = _folds(recipe.folds, len(truth), seed, groups)
    fused = _cross_fitted(draft, recipe, outputs, truth, folds)
    method = recipe.method if recipe.method != "best" else _best(draft, fused, truth, recipe)
    temperature, thresholds = 1.0, dict[str, float]()
    served = fused[method]
    if isinstance(served, Fused) and recipe.temperature and method != "vote":
        temperature = fit_temperature(served.probabilities, truth)
        fused[method] = replace(served, probabilities=temper(served.probabilities, temperature))
    if isinstance(served, FusedSets) and recipe.thresholds != "none":
        # Of a vote, thresholds are the members' own, which stand near those of their average.
        voted = method == "vote"
        pooled = _average(draft, outputs) if voted else served.probabilities
        thresholds = _thresholds(draft, recipe, pooled, truth)
        draft = draft.model_copy(update={"thresholds": thresholds})
        fused = _cross_fitted(draft, recipe, outputs, truth, folds)
    weighted, stack = _fit_members(draft, recipe, outputs, truth)
    model = stack.parameters.model if stack else None
    spec = FusionSpec(
        method=method,
        space=recipe.space if method in ("average", "weighted_average") else "probability",
        temperature=temperature,
        model=model,
        parameters=f"fusion/{draft.name}/{draft.version}/{STACK_FILES[model]}" if model else None,
    )
    return Fitted(weighted.model_copy(update={"fusion": spec}), stack, fused)


def _cross_fitted(
    draft: Ensemble, recipe: FusionRecipe, outputs: Floats, truth: Targets, folds: Sequence[Fold]
) -> dict[str, Answers]:
    """Each method's answers to every row, by a fit that never saw the row; no temperature."""
    order: list[Ints] = []
    parts: dict[str, list[Answers]] = {method: [] for method in recipe.methods(draft.task)}
    for fitting, held_out in folds:
        fusion = Fusion(*_fit_members(draft, recipe, outputs[:, fitting], truth[fitting]))
        order.append(held_out)
        for method, fused in parts.items():
            fused.append(fusion(outputs[:, held_out], method=method))
    back = np.argsort(np.concatenate(order))
    return {method: _joined(fused, back) for method, fused in parts.items()}


def _folds(folds: int, rows: int, seed: int, groups: Sequence[str] | None) -> list[Fold]:
    from sklearn.model_selection import KFold

    number = min(folds, len(set(groups))) if groups is not None else 1
    if number < 2:
        return list(KFold(min(folds, rows), shuffle=True, random_state=seed).split(np.empty(rows)))
    plan = out_of_fold_plan([""] * rows, number, seed, groups)
    return [(np.flatnonzero(plan != fold), np.flatnonzero(plan == fold)) for fold in range(number)]


def _joined(parts: Sequence[Answers], order: Ints) -> Answers:
    """Answers to rows in parts as answers to all of them, in `order`."""
    kind = type(parts[0])
    return kind(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
            for field in fields(kind)
        }
    )


def _fit_members(
    draft: Ensemble, recipe: FusionRecipe, outputs: Floats, truth: Targets
) -> tuple[Ensemble, Stack | None]:
    rules = rules_of(draft)
    if recipe.weights == "accuracy":
        weights = merit_weights(outputs, truth, rules=rules)
    else:
        criterion = recipe.criterion_for(draft.task)
        weights = greedy_weights(outputs, truth, rules=rules, metric=criterion, space=recipe.space)
    members = [
        member.model_copy(update={"weight": round(float(weight), 6)})
        for member, weight in zip(draft.members, weights, strict=True)
    ]
    ensemble = draft.model_copy(update={"members": members})
    if "stack" not in recipe.methods(draft.task):
        return ensemble, None
    return ensemble, stack_of(recipe.stack_for(draft.task)).fit(outputs, truth, ensemble)


def _average(draft: Ensemble, outputs: Floats) -> Floats:
    """The members' plain average."""
    pooled = Fusion(draft)(outputs, method="average")
    assert isinstance(pooled, FusedSets), "thresholds are fitted for sets of labels"
    return pooled.probabilities


def _thresholds(
    draft: Ensemble, recipe: FusionRecipe, probabilities: Floats, truth: Targets
) -> dict[str, float]:
    labels = draft.labels or []
    if recipe.thresholds == "label":
        cuts = label_thresholds(probabilities, truth).tolist()
    else:
        cuts = [common_threshold(probabilities, truth)] * len(labels)
    return {label: round(float(cut), 6) for label, cut in zip(labels, cuts, strict=True)}


def _best(
    draft: Ensemble, fused: Mapping[str, Answers], truth: Targets, recipe: FusionRecipe
) -> Method:
    """The candidate with the best score after its own temperature or threshold; equals go to the first."""
    rules, criterion = rules_of(draft), recipe.criterion_for(draft.task)

    def loss(method: Method) -> Loss:
        answers = fused[method]
        if isinstance(answers, FusedValues):
            return rules.loss(answers.values, truth, criterion)
        if isinstance(answers, FusedSets) and criterion == "micro_f1" and method != "vote":
            cut = common_threshold(answers.probabilities, truth)
            return -micro_f1(answers.probabilities >= cut, truth.astype(np.bool_)), 0.0
        if isinstance(answers, FusedSets) and criterion == "micro_f1":
            return -micro_f1(answers.chosen, truth.astype(np.bool_)), 0.0
        if isinstance(answers, Fused) and criterion == "accuracy":
            return -float(np.mean(answers.winners == truth)), 0.0
        pooled = answers.probabilities
        if isinstance(answers, Fused) and recipe.temperature and method != "vote":
            pooled = temper(pooled, fit_temperature(pooled, truth))
        return rules.loss(pooled, truth, criterion)

    candidates = recipe.candidates or recipe.methods(draft.task)
    return min(candidates, key=loss)
