"""Guessed labels, and the choice of those that have enough confidence for training."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from training.data.steps import HIDDEN, ORIGIN, Outcome
from training.data.suspect import Suspect
from training.recipe.values import spelled


@dataclass(frozen=True)
class Guess:
    """A label for one text, or none."""

    label: str | None
    confidence: float
    reason: str
    """Who gave the label, or why there is none."""


def sure_rows(
    rows: Dataset, guesses: Sequence[Guess], text: str, label: str, confidence: float
) -> Outcome:
    """Label the rows whose guess has at least this confidence. The other rows are the outcome's suspects, those with
    the highest confidence first."""
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
