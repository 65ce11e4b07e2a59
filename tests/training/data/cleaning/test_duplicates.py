import random

import pytest

from training.data.cleaning.duplicates import (
    exact_duplicates,
    label_conflicts,
    leaks,
    near_duplicates,
)

LONG = "please tell me why the transfer to my sister in spain has not arrived after four days"


def test_duplicates_are_found_apart_from_case_and_space() -> None:
    texts = ["My card", "my  CARD ", "my card", "other"]
    labels = ["x", "x", "y", "x"]
    found = exact_duplicates(texts, [labels], ["a:1", "a:2", "a:3", "a:4"])
    assert found == {1: "equal to a:1"}


def test_near_duplicates_are_those_of_a_brute_force_comparison() -> None:
    rng = random.Random(0)
    words = LONG.split()
    texts = []
    for _ in range(80):
        base = rng.sample(words, len(words))
        texts.append(" ".join(base))
        for _ in range(rng.randrange(3)):
            changed = list(base)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(len(changed))] = rng.choice(["zebra", "piano", "cloud"])
            texts.append(" ".join(changed))

    def pieces(text: str) -> set[str]:
        return {text[n : n + 5] for n in range(len(text) - 4)}

    kept: list[int] = []
    expected = set()
    for row, text in enumerate(texts):
        shares = [
            len(pieces(text) & pieces(texts[other])) / len(pieces(text) | pieces(texts[other]))
            for other in kept
        ]
        if any(share >= 0.7 for share in shares):
            expected.add(row)
        else:
            kept.append(row)
    found = near_duplicates(texts, [["x"] * len(texts)], [str(n) for n in range(len(texts))], 0.7)
    assert len(expected) > 20
    # LSH may miss a pair near the threshold, and proposes none that is not one.
    assert set(found) <= expected
    assert len(found) >= 0.95 * len(expected)


def test_near_duplicates_with_another_answer_stay() -> None:
    texts = [LONG, LONG + "!", LONG + "?"]
    found = near_duplicates(texts, [["x", "y", "x"]], ["a:1", "a:2", "a:3"], 0.8)
    assert list(found) == [2]
    assert found[2].endswith("similar to a:1")


def test_conflicting_labels_leave_together_or_by_majority() -> None:
    texts = ["a", "A ", "a", "b", "b", "c"]
    labels = ["x", "x", "y", "x", "y", "z"]
    assert list(label_conflicts(texts, labels)) == [0, 1, 2, 3, 4]
    # The tie has no majority.
    assert list(label_conflicts(texts, labels, majority=True)) == [2, 3, 4]
    assert "'x' (2), 'y' (1)" in label_conflicts(texts, labels)[0]


@pytest.mark.parametrize(("similarity", "leaked"), [(None, [0]), (0.8, [0, 1])])
def test_leaks_are_equal_texts_and_if_asked_similar_ones(
    similarity: float | None, leaked: list[int]
) -> None:
    texts = ["Where is it", LONG + " now", "something else"]
    found = leaks(texts, ["where is  it", LONG], ["test:1", "test:2"], similarity)
    assert sorted(found) == leaked
    assert found[0] == "it has the text of test:1"
