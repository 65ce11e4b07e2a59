"""The linear baseline."""

import numpy as np

from training.evaluation.baselines import tfidf_svc


def test_both_texts_of_a_pair_are_read() -> None:
    """The label is whether the second text has the first one's word, which neither text alone can tell."""
    words = [f"w{n}{'xyz'[n % 3] * 3}" for n in range(40)]
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[list[str], list[str], np.ndarray]:
        first = rng.choice(words, size=count)
        same = rng.integers(0, 2, size=count)
        second = np.where(same, first, rng.choice(words, size=count))
        return first.tolist(), second.tolist(), (first == second).astype(np.int64)

    firsts, seconds, truth = rows(800)
    asked, pairs, right = rows(200)
    said = tfidf_svc(firsts, truth, asked, seconds, pairs)
    assert np.mean(said == right) > 0.95
    assert np.mean(tfidf_svc(firsts, truth, asked) == right) < 0.7


def test_single_texts_are_read_alone() -> None:
    texts = ["my card is lost", "the parcel is late"] * 10
    said = tfidf_svc(texts, np.array([0, 1] * 10), ["a lost card", "where is the parcel"])
    assert said.tolist() == [0, 1]
