import random
from collections import Counter
from collections.abc import Sequence

from tests.training.data.cleaning.test_label_errors import noisy
from training.data.annotation.annotators import merged_labels


def test_consensus_of_unequal_annotators_beats_their_majority() -> None:
    """Two annotators are nearly always right, and three are not; all make different mistakes."""
    texts, truth, _ = noisy(0)
    rng = random.Random(2)
    names = sorted(set(truth))

    def annotator(mistakes: float) -> list[str]:
        return [
            rng.choice([name for name in names if name != label])
            if rng.random() < mistakes
            else label
            for label in truth
        ]

    said = [annotator(mistakes) for mistakes in (0.5, 0.03, 0.5, 0.03, 0.5)]
    majority = [Counter(votes).most_common(1)[0][0] for votes in zip(*said, strict=True)]

    def right(labels: Sequence[str | None]) -> int:
        return sum(one == label for one, label in zip(labels, truth, strict=True))

    guesses = merged_labels(texts, said)
    assert right(majority) < 0.95 * len(truth)
    assert right([guess.label for guess in guesses]) > right(majority) + 5


def test_few_rows_are_decided_by_the_majority() -> None:
    said = [["x", "y", ""], ["x", "x", ""], ["y", "x", " "]]
    guesses = merged_labels(["a", "b", "c"], said)
    assert [guess.label for guess in guesses] == ["x", "x", None]
    assert guesses[0].confidence == 2 / 3
    assert guesses[2].reason == "no annotator gave a label"
