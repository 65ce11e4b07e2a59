"""What the members have to beat: a linear model over word and character counts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def tfidf_svc(
    texts: Sequence[str], truth: NDArray[np.int64], queries: Sequence[str]
) -> NDArray[np.int64]:
    """Label indices [queries] by TF-IDF (words 1-2, characters 2-5 within words) and a linear SVC fitted on `texts`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LinearSVC(random_state=0))
    model.fit(list(texts), truth)
    predicted: NDArray[np.int64] = model.predict(list(queries)).astype(np.int64)
    return predicted
