"""Measures the next steps of one ensemble, the cheap ones first, within a budget of time (`choir improve`)."""

from pathlib import Path
from time import monotonic

import numpy as np
from pydantic import BaseModel, ConfigDict

from serve.bundle import Bundle
from serve.fusion.errors import FusionError
from serve.manifest import METHODS, Ensemble
from training.data.targets import known_labels
from training.evaluation.validation_answers import ValidationAnswers
from training.execution.progress_table import ProgressTable
from training.execution.run import WORK, recorded_data, recorded_recipe
from training.improve.case import Case, ImproveError
from training.improve.fusing import FewerMembers, MoreMembers, OtherMethod
from training.improve.judged import Judged, JudgedLabels, Unmeasured
from training.improve.rows import CleanerRows, MoreRows
from training.improve.stages import Changed
from training.improve.step import Finding, Skipped, Step
from training.improve.task import MergedLabels, OtherTemplate
from training.improve.trials import Trials
from training.improve.written import JudgedTexts
from training.leaderboard.validation import validation_texts
from training.manifest import whole_ensemble
from training.preparation import load_splits
from training.progress import Watch, counted
from training.recipe import DistillationStage, RecipeError
from training.stages.base import Base

TEMPLATES = ("{text}\nLabel:", "Text: {text}\nAnswer:")
WRITTEN_TEMPLATES = ("{text}\nAnswer:", "Input: {text}\nOutput:")


class NextSteps(BaseModel):
    """What was measured, and what was not."""

    model_config = ConfigDict(frozen=True)

    ensemble: str
    criterion: str
    value: float
    """The ensemble's criterion now, cross-fitted on the validation rows."""
    rows: int
    minutes: float
    """How long the measuring took."""
    findings: list[Finding]
    """The best first."""
    skipped: list[Skipped]


def next_steps(bundle_path: Path, name: str, minutes: float) -> NextSteps:
    """Measure the next steps of an ensemble in about `minutes`. Raises BundleError, RecipeError if the validation rows
    of generation are not known, and ImproveError if the bundle does not store what the members answer to them."""
    bundle = Bundle.open(bundle_path)
    begun = monotonic()
    deadline = begun + 60 * minutes
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    with ProgressTable() as progress:
        ensemble, judged = _judged(bundle, name, deadline, progress)
        found = _trials(bundle, ensemble, judged, deadline, progress)
        case = Case(bundle, ensemble, judged, found)
        steps = _steps(ensemble)
        with counted(progress, f"{name}: next steps", len(steps)) as advance:
            for step in steps:
                result = _measured(step, case)
                (findings if isinstance(result, Finding) else skipped).append(result)  # type: ignore[arg-type]
                advance(1)
    findings.sort(key=lambda each: -each.gain.value)
    return NextSteps(
        ensemble=name,
        criterion=judged.criterion,
        value=float(judged.served(np.ones((1, judged.rows)))[0]),
        rows=judged.rows,
        minutes=(monotonic() - begun) / 60,
        findings=findings,
        skipped=skipped,
    )


def _measured(step: Step, case: Case) -> Finding | Skipped:
    begun = monotonic()
    try:
        finding = step.measure(case)
    except (Unmeasured, RecipeError) as reason:
        return Skipped(area=step.area, step=step.name, reason=str(reason))
    return finding.model_copy(update={"spent": (monotonic() - begun) / 60})


def _steps(ensemble: Ensemble) -> list[Step]:
    """Return the steps, the cheap ones first: what stored outputs tell, then what shares one trial, then the rest."""
    fused: list[Step] = [OtherMethod(method) for method in METHODS[ensemble.task]]
    templates = WRITTEN_TEMPLATES if ensemble.task == "generation" else TEMPLATES
    return [
        *fused,
        FewerMembers(),
        MoreMembers(),
        *(MergedLabels(rank) for rank in range(3)),
        MoreRows(),
        Changed("learning_rate", 0.5),
        Changed("learning_rate", 2),
        Changed("rank", 2),
        *(OtherTemplate(template) for template in templates),
        CleanerRows(),
        Changed("epochs", 2),
    ]


def _judged(bundle: Bundle, name: str, deadline: float, watch: Watch) -> tuple[Ensemble, Judged]:
    """Return the newest version whose members' answers are stored, with these answers. A version with merged or
    distilled members has none."""
    if bundle.ensemble(name).task == "generation":
        whole = whole_ensemble(bundle, name)
        rows = validation_texts(bundle, whole)
        recipe = recorded_recipe(bundle.path)
        own = recipe.find(name) if recipe else None
        assert own is not None, "the validation rows are those of the recipe"
        limit, extract = own.max_new_tokens, own.extract
        return whole, JudgedTexts(bundle, whole, rows, limit, extract, deadline, watch)
    versions = [each for each in bundle.ensembles() if each.name == name]
    try:
        for ensemble in reversed(versions):
            answers = ValidationAnswers.read(bundle, ensemble)
            if answers is not None:
                return ensemble, JudgedLabels(answers)
    except FusionError as error:
        raise ImproveError(str(error)) from error
    raise ImproveError(
        f"{bundle.path} does not store what the members of {name} answer to the validation rows; a bundle that `choir "
        "train` made does"
    )


def _trials(
    bundle: Bundle, ensemble: Ensemble, judged: Judged, deadline: float, watch: Watch
) -> Trials | str:
    """Return the means to train a member of the ensemble again, or why there are none."""
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble.name) if recipe else None
    if recipe is None or own is None:
        return "the bundle does not hold the recipe that made it"
    if bundle.base_folder is None:
        return "the base is on a hub and not in a folder"
    if own.searches:
        return "the members' values were searched for, and the recipe does not hold what was found"
    member = next(
        (
            each
            for each in own.members
            if len(each.stages) == 1 and not isinstance(each.stages[0], DistillationStage)
        ),
        None,
    )
    if member is None:
        return "no member has one stage alone, which could be trained again for a trial"
    if member.name not in [each.name for each in ensemble.members]:
        return f"the ensemble has no member {member.name} any more"
    try:
        splits = load_splits(recipe, bundle.path / WORK)
    except RecipeError as error:
        return f"the recipe's data cannot be read: {error}"
    if splits.digest() != recorded_data(bundle.path):
        return "the recipe's data files have changed since the training"
    writes = own.task == "generation"
    labels = [] if writes else own.labels or known_labels(own.task, list(splits.train[own.answer]))
    base = Base(bundle.base_folder, recipe.base.kind, recipe.name, recipe.base.by_heads)
    return Trials(recipe, own, judged, member, labels, base, splits, deadline, watch)
