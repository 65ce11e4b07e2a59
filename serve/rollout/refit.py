"""A fusion that belongs to the adapters of a new version: carried, fitted again, or stale with permission."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve.bundle import Bundle
from serve.fusion.errors import FusionError
from serve.fusion.fitting import FIT_NOTE, refit_fusion
from serve.fusion.members import Floats
from serve.fusion.stack import Stack
from serve.fusion.validation import Question, ValidationRows, ValidationScores
from serve.manifest import Ensemble, Member
from serve.rollout.fitted import changed_members, fitted_parts, offers_fitted


class NoRefit(Exception):
    """Why a fusion cannot be fitted again, as the end of a sentence."""


class StaleFit(Exception):
    """A fusion that belongs to other adapters, cannot be fitted again, and was not allowed; in sentences."""


@dataclass(frozen=True)
class Fit:
    """A version's manifest and stacker, and what they were fitted on."""

    ensemble: Ensemble
    stack: Stack | None
    fitted_on: Mapping[str, list[str]] | None = None
    """Member -> digests of the adapters; None: the version's own."""
    refitted: bool = False
    """Whether the stacker is a new one."""
    stale: bool = False
    """Whether parts are in use that were fitted on other adapters, which was allowed."""


def settle(fit: Fit, bundles: Sequence[Bundle], *, allow: bool) -> Fit:
    """What a new version goes live with: the fit that it carries where that belongs to its adapters; else one to
    the stored validation scores of exactly its adapters; else, with `allow`, the old one.

    Raises StaleFit, and FusionError for a stacker that could not be used with any adapters."""
    # Whoever wrote a manifest does not say what happens to it here.
    scores = {key: each for key, each in fit.ensemble.scores.items() if key != FIT_NOTE}
    ensemble = fit.ensemble.model_copy(update={"scores": scores})
    fit = replace(fit, ensemble=ensemble)
    parts, changed = fitted_parts(ensemble), _changed(fit)
    if not changed or not offers_fitted(ensemble):
        return _noted(fit, {"state": "fitted"}) if parts else fit
    try:
        return _refitted(ensemble, bundles)
    except NoRefit as reason:
        if not parts:
            return fit
        if allow:
            return replace(_noted(fit, {"state": "stale", "members": changed}), stale=True)
        verb = "was" if parts in (["temperature"], ["stacker"]) else "were"
        raise StaleFit(
            f"The {' and '.join(parts)} of {ensemble.name} {verb} fitted on other adapters than the new ones of "
            f"{', '.join(changed)}, and cannot be fitted again: {reason}. Give a manifest with new ones, or keep the "
            "old with allow_stale_fusion."
        ) from None


def _changed(fit: Fit) -> list[str]:
    """Members with other adapters than the fit's, in order."""
    changed = set(changed_members(fit.ensemble, fit.fitted_on))
    if fit.stack is not None:
        others = fit.stack.changed_members(fit.ensemble)
        if fit.ensemble.fusion.method == "stack":
            changed.update(others)
    return [member.name for member in fit.ensemble.members if member.name in changed]


def _refitted(ensemble: Ensemble, bundles: Sequence[Bundle]) -> Fit:
    """Raises NoRefit."""
    try:
        rows, outputs = _scores_of(ensemble, bundles)
        options = rows.header.options
        fitted = refit_fusion(ensemble, options, outputs, rows.truth, rows.folds)
    except FusionError as error:
        raise NoRefit(str(error).rstrip(".")) from error
    fit = Fit(fitted.ensemble, fitted.stack, refitted=True)
    return _noted(fit, {"state": "refitted", "rows": len(rows.truth)})


def _scores_of(ensemble: Ensemble, bundles: Sequence[Bundle]) -> tuple[ValidationRows, Floats]:
    """The stored rows and all members' outputs [M, N, C] or [M, N]. Raises NoRefit and FusionError."""
    stored = [bundle.validation_scores(ensemble.name) for bundle in bundles]
    found = [rows for scores in stored if (rows := scores.rows()) is not None]
    if not found:
        raise NoRefit(f"no bundle has validation scores of {ensemble.name}")
    question = Question.of(ensemble)
    matching = [rows for rows in found if rows.header.question == question]
    if not matching:
        raise NoRefit(
            f"the stored validation scores of {ensemble.name} are of other labels or another template"
        )
    reason: NoRefit | None = None
    for rows in matching:
        try:
            return rows, np.stack([_outputs(each, rows, stored) for each in ensemble.members])
        except NoRefit as missing:
            reason = reason or missing
    assert reason is not None
    raise reason


def _outputs(member: Member, rows: ValidationRows, stored: Sequence[ValidationScores]) -> Floats:
    """What a member said to the rows, from whichever bundle has it. Raises NoRefit and FusionError."""
    for scores in stored:
        outputs = scores.outputs(member, rows.header.rows)
        if outputs is not None and len(outputs) == len(rows.truth):
            return outputs
    adapters = " with ".join(f"{ref.adapter} ({ref.digest})" for ref in member.adapters)
    raise NoRefit(
        f"no validation scores are stored of the member {member.name}, "
        + (f"whose adapter is {adapters}" if adapters else "which is the base alone")
    )


def _noted(fit: Fit, note: dict[str, object]) -> Fit:
    """With what happened in the manifest's free-form scores."""
    scores = {**fit.ensemble.scores, FIT_NOTE: note}
    return replace(fit, ensemble=fit.ensemble.model_copy(update={"scores": scores}))
