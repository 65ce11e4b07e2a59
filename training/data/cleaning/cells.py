"""Checks of one row by itself: empty cells, length, language."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from training.recipe.values import RecipeError


def empty_cells(rows: Dataset, columns: Sequence[str]) -> dict[int, str]:
    """Rows with nothing but space in one of the columns."""
    reasons: dict[int, str] = {}
    for name in columns:
        for index, cell in enumerate(rows[name]):
            if not cell.strip():
                reasons.setdefault(index, f"an empty cell in column {name!r}")
    return reasons


def wrong_length(
    texts: Sequence[str], shortest: int = 1, longest: int | None = None
) -> dict[int, str]:
    """Texts of fewer or more characters, space around them not counted."""
    reasons = {}
    for index, text in enumerate(texts):
        length = len(text.strip())
        if length < shortest:
            reasons[index] = f"{length} characters, fewer than {shortest}"
        elif longest is not None and length > longest:
            reasons[index] = f"{length} characters, more than {longest}"
    return reasons


def other_languages(
    texts: Sequence[str], languages: Sequence[str], confidence: float
) -> dict[int, str]:
    """Texts that are in none of the languages (ISO 639-1) with at least this confidence, by py3langid.

    Raises RecipeError for a language that py3langid does not know.
    """
    identifier = _identifier()
    # Creoles and the like, with three letters, are what a short text in plain English is mistaken for.
    known = sorted(label for label in identifier.labels if len(label) == 2)
    unknown = sorted(set(languages) - set(known))
    if unknown:
        raise RecipeError(
            f"data.clean.languages: {unknown[0]!r} is none of the languages that can be told apart: {', '.join(known)}"
        )
    identifier.set_languages(known)
    reasons = {}
    for index, text in enumerate(texts):
        language, likely = identifier.classify(text)
        if language not in languages and likely >= confidence:
            reasons[index] = f"{likely:.2f} likely to be {language!r}"
    return reasons


def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise RecipeError(
            "data.clean.languages needs py3langid; install Choir with the extra `data`"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
