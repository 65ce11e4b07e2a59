"""Which parts of a fusion were fitted, and whether its members still have the adapters that they were fitted on."""

from collections.abc import Mapping

from serve.control.records import VersionRecord
from serve.fusion.fitting.note import FitNote, has_fitted_numbers
from serve.fusion.labels.multilabel import THRESHOLD
from serve.fusion.selective.record import SelectiveFit
from serve.manifest import Ensemble
from serve.protocol.views import FittedPart, FusionFit

WEIGHTED = ("weighted_average", "vote", "mbr", "product")
"""The methods that use the members' weights."""
NUMBERS: tuple[FittedPart, ...] = ("weights", "temperature", "thresholds")
"""The parts that a person may set by hand."""


def fusion_fit(record: VersionRecord) -> FusionFit:
    """How the fitted parts of a version's fusion belong to its adapters."""
    parts = fitted_parts(record.ensemble)
    changed = changed_members(record.ensemble, record.fitted_on) if parts else []
    if record.allow_stale_fusion or changed:
        return FusionFit(state="stale", parts=parts, stale_members=changed)
    note = FitNote.of(record.ensemble)
    if note is not None and note.state == "refitted":
        return FusionFit(state="refitted", parts=parts, stale_members=[])
    if not parts:
        return FusionFit(state="none", parts=[], stale_members=[])
    by_hand = fit_digests(record) is None and set(parts) <= set(NUMBERS)
    return FusionFit(state="manual" if by_hand else "fitted", parts=parts, stale_members=[])


def fit_digests(record: VersionRecord) -> Mapping[str, list[str]] | None:
    """Member -> digests of the adapters that a version's weights, temperature and thresholds were fitted on; None if
    they were set by hand."""
    if record.fitted_on is None and not has_fitted_numbers(record.ensemble):
        return None
    return record.fitted_on or own_digests(record.ensemble)


def fitted_parts(ensemble: Ensemble) -> list[FittedPart]:
    """The parts of a fusion that depend on the adapters. Equal weights and thresholds of 0.5 do not."""
    parts: list[FittedPart] = []
    if ensemble.fusion.method in WEIGHTED and _has_weights(ensemble):
        parts.append("weights")
    if ensemble.fusion.temperature != 1:
        parts.append("temperature")
    if any(threshold != THRESHOLD for threshold in ensemble.thresholds.values()):
        parts.append("thresholds")
    if ensemble.fusion.method == "stack":
        parts.append("stacker")
    if ensemble.fusion.method == "gate":
        parts.append("gate")
    if ensemble.fusion.early_exit is not None:
        parts.append("early_exit")
    if ensemble.fusion.abstain is not None:
        parts.append("abstain")
    return parts


def offers_fitted(ensemble: Ensemble) -> bool:
    """Whether any part was fitted, even for a method that only requests choose."""
    offered = _has_weights(ensemble) or ensemble.fusion.model is not None
    offered = offered or SelectiveFit.of(ensemble) is not None
    return offered or bool(fitted_parts(ensemble))


def _has_weights(ensemble: Ensemble) -> bool:
    return len(set(ensemble.weights())) > 1


def own_digests(ensemble: Ensemble) -> dict[str, list[str]]:
    """Member -> the digests of its adapters."""
    return {member.name: [ref.digest for ref in member.adapters] for member in ensemble.members}


def changed_members(ensemble: Ensemble, fitted_on: Mapping[str, list[str]] | None) -> list[str]:
    """The members whose adapters differ from those in `fitted_on`. None stands for the ensemble's own adapters."""
    if fitted_on is None:
        return []
    return [name for name, own in own_digests(ensemble).items() if fitted_on.get(name) != own]
