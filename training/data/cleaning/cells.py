"""Checks of single rows: empty cells, length, language."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from serve.terminal.words import counted
from training.recipe.values import RecipeError


def empty_cells(rows: Dataset, columns: Sequence[str]) -> dict[int, str]:
    """Find rows in which one of the columns is empty or only space. Returns reasons by index."""
    reasons: dict[int, str] = {}
    for name in columns:
        for index, cell in enumerate(rows[name]):
            if not cell.strip():
                reasons.setdefault(index, f"an empty cell in column {name!r}")
    return reasons


def wrong_length(
    texts: Sequence[str], shortest: int = 1, longest: int | None = None
) -> dict[int, str]:
    """Find texts with fewer characters than `shortest` or more than `longest`, without surrounding space. Returns
    reasons by index."""
    reasons = {}
    for index, text in enumerate(texts):
        length = len(text.strip())
        if length < shortest:
            reasons[index] = f"{counted(length, 'character')}, fewer than {shortest}"
        elif longest is not None and length > longest:
            reasons[index] = f"{counted(length, 'character')}, more than {longest}"
    return reasons


def other_languages(
    texts: Sequence[str], languages: Sequence[str], confidence: float
) -> dict[int, str]:
    """Find texts that are in another language than `languages` (ISO 639-1) with at least this confidence, by py3langid.
    Returns reasons by index.

    Raises RecipeError if py3langid does not know a language, or is not installed.
    """
    identifier = _identifier()
    # Codes of three letters (creoles, for example) are left out: short English texts are mistaken for these languages.
    known = sorted(label for label in identifier.labels if len(label) == 2)
    unknown = sorted(set(languages) - set(known))
    if unknown:
        raise RecipeError(
            f"data.clean.languages: {unknown[0]!r} is not one of the languages that can be detected: {', '.join(known)}"
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
