"""A note in a manifest's `scores` that tells fitted numbers from numbers that a person has set."""

import hashlib
import json
from typing import Literal, Self

from pydantic import ValidationError

from serve.manifest import Contract, Ensemble

KEY = "fusion_fit"
FIGURES = "validation"
"""What of `scores` only training writes; it did so before it left notes."""


class FitNote(Contract):
    """A record of what was fitted. It holds while the manifest's numbers and adapters are those of the fit."""

    state: Literal["fitted", "refitted"]
    """`refitted`: by a swap."""
    rows: int
    """Validation rows that it was fitted on."""
    mark: str
    """SHA-256 of the numbers and the adapters."""
    numbers: bool = True
    """False: only the stacker was fitted; weights, temperature and thresholds had been set by hand and were kept."""

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self | None:
        """Returns a manifest's note; None if there is none or a number was changed since the fit."""
        try:
            note = cls.model_validate(ensemble.scores.get(KEY))
        except ValidationError:
            return None
        return note if note.mark == _mark(ensemble) else None


def noted(
    ensemble: Ensemble, state: Literal["fitted", "refitted"], rows: int, *, numbers: bool = True
) -> Ensemble:
    """Returns the manifest with the note of a fit."""
    note = FitNote(state=state, rows=rows, mark=_mark(ensemble), numbers=numbers)
    scores = {**ensemble.scores, KEY: note.model_dump()}
    return ensemble.model_copy(update={"scores": scores})


def has_fitted_numbers(ensemble: Ensemble) -> bool:
    """Returns whether the manifest's weights, temperature and thresholds come from a fit to its adapters, not from a
    person."""
    if KEY not in ensemble.scores:
        return FIGURES in ensemble.scores
    note = FitNote.of(ensemble)
    return note is not None and note.numbers


def _mark(ensemble: Ensemble) -> str:
    spec = ensemble.fusion
    members = [
        [member.name, weight, [ref.digest for ref in member.adapters]]
        for member, weight in zip(ensemble.members, ensemble.weights(), strict=True)
    ]
    thresholds = {label: float(cut) for label, cut in ensemble.thresholds.items()}
    content = [members, spec.method, spec.space, float(spec.temperature), spec.model, thresholds]
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"
