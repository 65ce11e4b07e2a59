"""Finds labels that are likely wrong, by a model that was not trained on the row (Northcutt et al. 2021)."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.terminal.words import counted
from training.data.cleaning.families import families
from training.data.splits import fold_plan
from training.recipe.values import RecipeError

FOLDS = 5
COMPONENTS = 256
"""Components of the latent semantic analysis. More would make the model slow if there are many labels."""


@dataclass(frozen=True)
class Doubt:
    """A label that is likely wrong, with a suggestion."""

    row: int
    suggestion: str
    confidence: float
    """Probability of the suggested label."""


def suspected_label_errors(
    texts: Sequence[str], labels: Sequence[str], seed: int = 0
) -> tuple[list[Doubt], str]:
    """Return the rows whose label is likely wrong, the most doubtful first, and a note on what was not checked.

    It uses cleanlab's confident learning on out-of-fold probabilities of a linear model over the texts. Labels with
    fewer than 5 different texts are not checked. Raises RecipeError if cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        raise RecipeError(
            "data.clean.label_errors needs cleanlab; install Choir with the extra `data`"
        ) from None
    counts = texts_by_label(texts, labels)
    checked = [row for row, label in enumerate(labels) if counts[label] >= FOLDS]
    note = (
        f"{counted(len(labels) - len(checked), 'row')} of rare labels not checked"
        if len(checked) < len(labels)
        else ""
    )
    names = sorted({labels[row] for row in checked})
    if len(names) < 2:
        return [], "too few rows for each label to check any"
    given = np.array([names.index(labels[row]) for row in checked])
    probabilities = out_of_fold([texts[row] for row in checked], given, seed)
    found = find_label_issues(
        given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    doubts = []
    for position in found.tolist():
        best = int(probabilities[position].argmax())
        doubts.append(Doubt(checked[position], names[best], float(probabilities[position, best])))
    return doubts, note


def texts_by_label(texts: Sequence[str], labels: Sequence[Hashable]) -> Counter[Hashable]:
    """Count the different texts of each label. A label with fewer texts than folds cannot be in every fold."""
    return Counter(label for label, _ in set(zip(labels, families(texts), strict=True)))


def out_of_fold(texts: Sequence[str], labels: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return label probabilities [N, C] of each text, by a linear model that was fitted on the other folds.

    Equal texts are in the same fold. Each label needs at least 5 different texts.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import Normalizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    features = make_union(words, characters).fit_transform(list(texts))
    size = min(COMPONENTS, *(n - 1 for n in features.shape))
    if size >= 2:
        features = TruncatedSVD(size, random_state=seed).fit_transform(features)
    model = make_pipeline(Normalizer(), LogisticRegression(C=30, max_iter=300))
    folds = fold_plan(families(texts), FOLDS, seed, labels.tolist())
    found: NDArray[np.float64] = cross_val_predict(
        model, features, labels, cv=PredefinedSplit(folds), method="predict_proba"
    )
    return found
