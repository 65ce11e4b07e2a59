"""Guessed labels, and which of them are sure enough to be trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from training.data.steps import HIDDEN, ORIGIN, Outcome, Suspect
from training.recipe.values import spelled


@dataclass(frozen=True)
class Guess:
    """A label for one text, or none."""

    label: str | None
    confidence: float
    reason: str
    """Who says so."""


def sure_rows(
    rows: Dataset, guesses: Sequence[Guess], text: str, label: str, confidence: float
) -> Outcome:
    """Rows whose guess has at least this confidence, labelled by it; the others as suspects, the surest ones first."""
    kept = [
        index
        for index, guess in enumerate(guesses)
        if guess.label is not None and guess.confidence >= confidence
    ]
    chosen = set(kept)
    open_questions = [
        Suspect(
            text=rows[index][text],
            suggestion=guess.label or "",
            confidence=guess.confidence,
            reason=guess.reason,
            origin=rows[index][ORIGIN],
        )
        for index, guess in enumerate(guesses)
        if index not in chosen
    ]
    sure = rows.select(kept)
    labelled = {name: list(sure[name]) for name in (text, *HIDDEN)}
    labelled[label] = [spelled(str(guesses[index].label)) for index in kept]
    return Outcome(
        Dataset.from_dict(labelled),
        suspects=sorted(open_questions, key=lambda suspect: -suspect.confidence),
        note=f"{len(kept)} labelled, {len(open_questions)} for review",
    )
