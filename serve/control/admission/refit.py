"""The fusion of a version with other adapters: kept if it fits them, else fitted again, else stale if that is
allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serve.bundle import Bundle
from serve.control.admission.fusion_fit import NUMBERS, changed_members, fitted_parts, offers_fitted
from serve.fusion.drift.baseline import with_baseline
from serve.fusion.errors import FusionError
from serve.fusion.fitting.fit import refit_fusion
from serve.fusion.fitting.note import noted
from serve.fusion.fitting.stored_scores import Question, ValidationRows, ValidationScores
from serve.fusion.fuse import Fusion
from serve.fusion.members import Floats
from serve.fusion.parameters import Parameters
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import Ensemble, Member


class NoRefit(Exception):
    """Why a fusion cannot be fitted again, as the end of a sentence."""


class StaleFit(Exception):
    """Why a fusion that was fitted on other adapters is refused, in sentences."""


@dataclass(frozen=True)
class Fit:
    """A version's manifest and stacker or gate, and the adapters that they were fitted on."""

    ensemble: Ensemble
    parameters: Parameters | None
    fitted_on: Mapping[str, list[str]] | None = None
    """Member -> digests of the adapters that weights, temperature and thresholds were fitted on; None: the version's
    own adapters, or set by hand (and never stale)."""
    refitted: bool = False
    """Whether the parameters were fitted again."""

    @property
    def stale_numbers(self) -> bool:
        """Whether it uses weights, temperature or thresholds that were fitted on other adapters."""
        numbers = [part for part in fitted_parts(self.ensemble) if part in NUMBERS]
        return bool(numbers and changed_members(self.ensemble, self.fitted_on))


def settle(fit: Fit, bundles: Sequence[Bundle], *, allow: bool) -> Fit:
    """The fit of a version with other adapters, and the baseline of its answers if validation scores of exactly these
    adapters are stored. Raises StaleFit."""
    settled = _settled(fit, bundles, allow=allow)
    return settled if settled.refitted else _with_baseline(settled, bundles)


def _with_baseline(fit: Fit, bundles: Sequence[Bundle]) -> Fit:
    try:
        rows, outputs = _scores_of(fit.ensemble, bundles)
        fusion = Fusion(fit.ensemble, fit.parameters)
        vectors = _vectors(rows, fit.ensemble, bundles) if fusion.gate else None
        ensemble = with_baseline(fusion, outputs, fusion(outputs, vectors=vectors), vectors)
    except (NoRefit, FusionError):
        return fit
    return replace(fit, ensemble=ensemble)


def _settled(fit: Fit, bundles: Sequence[Bundle], *, allow: bool) -> Fit:
    """A fit that belongs to these adapters stays. Any other is replaced by a fit to the stored validation scores of
    exactly these adapters. Without such scores it stays if it has no fitted parts, or with `allow`. Numbers set by hand
    always stay. Raises StaleFit."""
    by_hand = fit.fitted_on is None
    parts, changed = fitted_parts(fit.ensemble), _changed(fit)
    if not changed or not offers_fitted(fit.ensemble):
        return fit
    try:
        return _refitted(fit.ensemble, bundles, by_hand=by_hand)
    except NoRefit as reason:
        if by_hand:
            parts = [part for part in parts if part not in NUMBERS]
        if not parts or allow:
            return fit
        verb = "was" if len(parts) == 1 and not parts[0].endswith("s") else "were"
        what = " and ".join(part.replace("_", " ") for part in parts)
        raise StaleFit(
            f"The {what} of {fit.ensemble.name} {verb} fitted on other adapters than the new ones of "
            f"{', '.join(changed)}, and cannot be fitted again: {reason}. Give a manifest with new ones, or keep the "
            "old with allow_stale_fusion."
        ) from None


def _changed(fit: Fit) -> list[str]:
    """The members whose adapters differ from those of the fit, in order."""
    changed = set(changed_members(fit.ensemble, fit.fitted_on))
    if fit.parameters is not None and fit.ensemble.fusion.method in ("stack", "gate"):
        changed.update(fit.parameters.changed_members(fit.ensemble))
    selective = SelectiveFit.of(fit.ensemble)
    if selective is not None:
        changed.update(selective.changed_members(fit.ensemble))
    return [member.name for member in fit.ensemble.members if member.name in changed]


def _refitted(ensemble: Ensemble, bundles: Sequence[Bundle], *, by_hand: bool) -> Fit:
    """Raises NoRefit."""
    try:
        rows, outputs = _scores_of(ensemble, bundles)
        options = rows.header.options
        vectors = _vectors(rows, ensemble, bundles) if ensemble.fusion.model == "gate" else None
        fitted = refit_fusion(
            ensemble, options, outputs, rows.truth, rows.folds, vectors, by_hand=by_hand
        )
    except FusionError as error:
        raise NoRefit(str(error).rstrip(".")) from error
    new = noted(fitted.ensemble, "refitted", len(rows.truth), numbers=not by_hand)
    return Fit(new, fitted.parameters, refitted=True)


def _scores_of(ensemble: Ensemble, bundles: Sequence[Bundle]) -> tuple[ValidationRows, Floats]:
    """The stored rows, and the outputs of M members for N rows: [M, N, C], or [M, N] for values. Raises NoRefit and
    FusionError."""
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
            outputs = [_outputs(each, rows, stored) for each in ensemble.members]
            if len({each.shape for each in outputs}) > 1:
                raise NoRefit(
                    f"the stored validation scores of {ensemble.name} do not have the same shape for all members"
                )
            return rows, np.stack(outputs)
        except NoRefit as missing:
            reason = reason or missing
    assert reason is not None
    raise reason


def _vectors(rows: ValidationRows, ensemble: Ensemble, bundles: Sequence[Bundle]) -> Floats | None:
    """The base's vectors of the rows, from the first bundle that has them. Raises FusionError."""
    for bundle in bundles:
        vectors = bundle.validation_scores(ensemble.name).vectors(rows.header.rows)
        if vectors is not None and len(vectors) == len(rows.truth):
            return vectors
    return None


def _outputs(member: Member, rows: ValidationRows, stored: Sequence[ValidationScores]) -> Floats:
    """A member's outputs for the rows, from the first bundle that has them. Raises NoRefit and FusionError."""
    for scores in stored:
        outputs = scores.outputs(member, rows.header.rows)
        if outputs is not None and len(outputs) == len(rows.truth):
            return outputs
    adapters = " with ".join(f"{ref.adapter} ({ref.digest})" for ref in member.adapters)
    raise NoRefit(
        f"no validation scores are stored of the member {member.name}, "
        + (f"whose adapter is {adapters}" if adapters else "which is the base alone")
    )
