"""Fits a fusion to validation rows that no member was trained on: weights, stacker or gate, method, temperature,
thresholds, early exit, abstaining.

Training uses it, and so does a swap that brings other adapters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from serve.fusion.drift.baseline import with_baseline
from serve.fusion.errors import FusionError
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fitting.selective import plain, with_selective
from serve.fusion.fitting.thresholds import common_threshold, label_thresholds
from serve.fusion.fitting.weights import greedy_weights, merit_weights
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, Fused, FusedSets, FusedValues, joined
from serve.fusion.gate import Gate
from serve.fusion.labels.measures import entropy, micro_f1
from serve.fusion.labels.rules import Loss
from serve.fusion.labels.tasks import rules_of
from serve.fusion.labels.temperature import fit_temperature, temper
from serve.fusion.members import Floats, Ints
from serve.fusion.parameters import Parameters, parameters_file
from serve.fusion.stack import stack_of
from serve.manifest import PREFIX_METHODS, Ensemble, FittedModel, FusionSpec, Method

Targets = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.float64]
"""The right answers: label indices [N], whether each label is true [N, C], or values [N]."""


@dataclass(frozen=True)
class Fitted:
    """A fitted fusion, and each method's answers to the validation rows by fits that had not seen them."""

    ensemble: Ensemble
    """The manifest with the fitted weights, method, temperature and thresholds."""
    parameters: Parameters | None
    """The fitted stacker or gate, if there is any."""
    validation: Mapping[str, Answers]
    """Method -> cross-fitted answers to all validation rows, with the temperature for the manifest's method."""


@dataclass(frozen=True)
class _Rows:
    """Validation rows: the members' outputs [M, N, C] or [M, N], the right answers, each row's fold [N], and, for a
    gate, the base's vectors [N, H]."""

    outputs: Floats
    truth: Targets
    folds: Ints
    vectors: Floats | None = None

    def of(self, places: Ints) -> "_Rows":
        vectors = None if self.vectors is None else self.vectors[places]
        return _Rows(self.outputs[:, places], self.truth[places], self.folds[places], vectors)


def fit_fusion(
    draft: Ensemble,
    options: FusionOptions,
    outputs: Floats,
    truth: Targets,
    folds: Ints,
    vectors: Floats | None = None,
) -> Fitted:
    """Fits a fusion to the members' outputs [M, N, C] or [M, N] for the validation rows, and chooses the method.

    `folds` [N] gives each row's part. Each part is judged by a fit to the other parts. `vectors` [N, H] are those of
    the base, which a gate reads. Raises FusionError for unsound input."""
    rows = _Rows(outputs, truth, folds, vectors)
    methods = options.methods(draft.task)
    draft = _unfitted(draft, options)
    fused = _cross_fitted(draft, options, rows, methods)
    method = options.method if options.method != "best" else _best(draft, fused, truth, options)
    filed = [method] if options.model_for(method, draft.task) else methods
    models = [options.model_for(each, draft.task) for each in filed]
    fitted = _finished(draft, options, rows, method, fused, next(filter(None, models), None))
    return _with_baseline(fitted, rows)


def refit_fusion(
    ensemble: Ensemble,
    options: FusionOptions,
    outputs: Floats,
    truth: Targets,
    folds: Ints,
    vectors: Floats | None = None,
    *,
    by_hand: bool = False,
) -> Fitted:
    """Fits a manifest's numbers again to these outputs, and keeps its method and its stacker's model.

    `by_hand`: keeps its weights, temperature and thresholds too, which a person has set. Raises FusionError for unsound
    input."""
    rows = _Rows(outputs, truth, folds, vectors)
    own = options.as_served(ensemble)
    draft = _unfitted(ensemble, own)
    method = ensemble.fusion.method
    fused = _cross_fitted(draft, own, rows, [method])
    fitted = _finished(draft, own, rows, method, fused, ensemble.fusion.model)
    fitted = _with_numbers_of(ensemble, fitted, rows) if by_hand else fitted
    return _with_baseline(fitted, rows)


def _with_baseline(fitted: Fitted, rows: _Rows) -> Fitted:
    """Adds the baseline that later answers are compared with."""
    fusion = Fusion(fitted.ensemble, fitted.parameters)
    unseen = fitted.validation[fitted.ensemble.fusion.method]
    ensemble = with_baseline(fusion, rows.outputs, unseen, rows.vectors)
    return replace(fitted, ensemble=ensemble)


def _with_numbers_of(ensemble: Ensemble, fitted: Fitted, rows: _Rows) -> Fitted:
    """Returns the fit with the weights, temperature and thresholds of `ensemble`."""
    new = fitted.ensemble
    spec = new.fusion.model_copy(update={"temperature": ensemble.fusion.temperature})
    kept = {"members": ensemble.members, "thresholds": ensemble.thresholds}
    new = new.model_copy(update={"fusion": spec, **kept})
    answers = fitted.validation[spec.method]
    if spec.method not in ("stack", "gate"):
        answers = Fusion(plain(new))(rows.outputs)
    return replace(fitted, ensemble=_selective(new, rows, answers))


def _selective(ensemble: Ensemble, rows: _Rows, answers: Answers) -> Ensemble:
    """Fits early exit and abstaining, which are for one label a row. `answers` have not seen their rows."""
    if not isinstance(answers, Fused):
        return ensemble
    return with_selective(ensemble, rows.outputs, rows.truth.astype(np.int64), answers)


def _unfitted(ensemble: Ensemble, options: FusionOptions) -> Ensemble:
    """Returns the manifest without its fitted numbers."""
    members = [member.model_copy(update={"weight": None}) for member in ensemble.members]
    spec = FusionSpec(method="average", space=options.space)
    return ensemble.model_copy(update={"members": members, "fusion": spec, "thresholds": {}})


def _finished(
    draft: Ensemble,
    options: FusionOptions,
    rows: _Rows,
    method: Method,
    fused: dict[str, Answers],
    model: FittedModel | None,
) -> Fitted:
    """Fits to all rows, and takes the temperature or the thresholds from the cross-fitted answers. `model` is that of
    the parameters that have a file."""
    temperature = 1.0
    served = fused[method]
    if isinstance(served, Fused) and options.temperature and method != "vote":
        temperature = fit_temperature(served.probabilities, rows.truth)
        tempered = temper(served.probabilities, temperature)
        fused[method] = replace(served, probabilities=tempered, entropy=entropy(tempered))
    if isinstance(served, FusedSets) and options.thresholds != "none":
        # Of a vote, thresholds are the members' own, which stand near those of their average.
        voted = method == "vote"
        pooled = _average(draft, rows.outputs) if voted else served.probabilities
        thresholds = _thresholds(draft, options, pooled, rows.truth)
        draft = draft.model_copy(update={"thresholds": thresholds})
        fused = _cross_fitted(draft, options, rows, cast(list[Method], list(fused)))
    weighted = _weighted(draft, options, rows)
    parameters = _parameters(weighted, rows, model)
    spec = FusionSpec(
        method=method,
        space=options.space if method in ("average", "weighted_average") else "probability",
        temperature=temperature,
        model=model,
        parameters=f"fusion/{draft.name}/{draft.version}/{parameters_file(model)}"
        if model
        else None,
        top_k=options.top_k if model == "gate" else None,
        early_exit=options.early_exit if method in PREFIX_METHODS else None,
        abstain=options.abstain,
    )
    ensemble = weighted.model_copy(update={"fusion": spec})
    return Fitted(_selective(ensemble, rows, fused[method]), parameters, fused)


def _cross_fitted(
    draft: Ensemble, options: FusionOptions, rows: _Rows, methods: Sequence[Method]
) -> dict[str, Answers]:
    """Returns each method's answers to every row, by a fit that did not see the row, without temperature."""
    order: list[Ints] = []
    parts: dict[Method, list[Answers]] = {method: [] for method in methods}
    for fold in np.unique(rows.folds):
        fitting, held_out = np.flatnonzero(rows.folds != fold), np.flatnonzero(rows.folds == fold)
        order.append(held_out)
        known, asked = rows.of(fitting), rows.of(held_out)
        weighted = _weighted(draft, options, known)
        for method, fused in parts.items():
            model = options.model_for(method, draft.task)
            fusion = Fusion(_routed(weighted, options, model), _parameters(weighted, known, model))
            fused.append(fusion(asked.outputs, method=method, vectors=asked.vectors))
    back = np.argsort(np.concatenate(order))
    return {method: joined(fused, back) for method, fused in parts.items()}


def _routed(ensemble: Ensemble, options: FusionOptions, model: FittedModel | None) -> Ensemble:
    """Returns the manifest with the `top_k` of a gate."""
    if model != "gate" or options.top_k is None:
        return ensemble
    spec = ensemble.fusion.model_copy(update={"top_k": options.top_k})
    return ensemble.model_copy(update={"fusion": spec})


def _weighted(draft: Ensemble, options: FusionOptions, rows: _Rows) -> Ensemble:
    """Returns the manifest with fitted weights."""
    rules = rules_of(draft)
    outputs, truth = rows.outputs, rows.truth
    if options.weights == "accuracy":
        weights = merit_weights(outputs, truth, rules=rules)
    else:
        criterion = options.criterion_for(draft.task)
        weights = greedy_weights(outputs, truth, rules=rules, metric=criterion, space=options.space)
    members = [
        member.model_copy(update={"weight": round(float(weight), 6)})
        for member, weight in zip(draft.members, weights, strict=True)
    ]
    return draft.model_copy(update={"members": members})


def _parameters(ensemble: Ensemble, rows: _Rows, model: FittedModel | None) -> Parameters | None:
    """Fits a stacker or a gate. Raises FusionError if a gate lacks the base's vectors."""
    if model is None:
        return None
    if model != "gate":
        return stack_of(model).fit(rows.outputs, rows.truth, ensemble)
    if rows.vectors is None:
        raise FusionError(
            "A gate is fitted on the base's vectors of the validation rows, and there are none; it needs a base that "
            "heads read."
        )
    return Gate.fit(rows.outputs, rows.truth, rows.vectors, ensemble)


def _average(draft: Ensemble, outputs: Floats) -> Floats:
    """Returns the members' plain average."""
    pooled = Fusion(draft)(outputs, method="average")
    assert isinstance(pooled, FusedSets), "thresholds are fitted for sets of labels"
    return pooled.probabilities


def _thresholds(
    draft: Ensemble, options: FusionOptions, probabilities: Floats, truth: Targets
) -> dict[str, float]:
    labels = draft.labels or []
    if options.thresholds == "label":
        cuts = label_thresholds(probabilities, truth).tolist()
    else:
        cuts = [common_threshold(probabilities, truth)] * len(labels)
    return {label: round(float(cut), 6) for label, cut in zip(labels, cuts, strict=True)}


def _best(
    draft: Ensemble, fused: Mapping[str, Answers], truth: Targets, options: FusionOptions
) -> Method:
    """Returns the candidate with the lowest loss after its own temperature or threshold; the first of equals."""
    rules, criterion = rules_of(draft), options.criterion_for(draft.task)

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
        if isinstance(answers, Fused) and options.temperature and method != "vote":
            pooled = temper(pooled, fit_temperature(pooled, truth))
        return rules.loss(pooled, truth, criterion)

    candidates: Sequence[Method] = options.candidates or options.methods(draft.task)
    if options.early_exit is not None:
        candidates = [each for each in candidates if each in PREFIX_METHODS]
    return min(candidates, key=loss)
