"""Baselines to compare members with: a linear model over word and character counts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tfidf_svc(
    texts: Sequence[str],
    truth: NDArray[np.int64],
    queries: Sequence[str],
    pairs: Sequence[str] | None = None,
    query_pairs: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Predict label indices [queries] by TF-IDF (words 1-2, characters 2-5 within words) and a linear SVC, fitted on
    `texts`.

    If rows are pairs, their second texts are `pairs` and `query_pairs`. The model then reads both texts, their
    difference and their product, as heads do."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    counts = make_union(words, characters).fit([*texts, *(pairs or [])])
    model = LinearSVC(random_state=0).fit(_read(counts.transform, texts, pairs), truth)
    predicted: NDArray[np.int64] = model.predict(_read(counts.transform, queries, query_pairs))
    return predicted.astype(np.int64)


def _read(
    count: Callable[[list[str]], Any], texts: Sequence[str], pairs: Sequence[str] | None
) -> Any:
    """Return sparse features [N, columns]."""
    from scipy.sparse import hstack

    first = count(list(texts))
    if pairs is None:
        return first
    second = count(list(pairs))
    return hstack([first, second, abs(first - second), first.multiply(second)]).tocsr()
