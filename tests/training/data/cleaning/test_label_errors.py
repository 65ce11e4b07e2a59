import random
import sys

import pytest

from training.data.cleaning.label_errors import suspected_label_errors
from training.recipe.values import RecipeError

WORDS = {
    "card": ["card", "plastic", "chip", "pin"],
    "transfer": ["transfer", "iban", "sepa", "swift"],
    "cash": ["cash", "atm", "notes", "withdraw"],
}


def noisy(wrong: int) -> tuple[list[str], list[str], set[int]]:
    """Texts of three easy labels, the labels of `wrong` of them exchanged."""
    rng = random.Random(1)
    texts, labels = [], []
    for number in range(150):
        label = list(WORDS)[number % 3]
        texts.append(" ".join([*rng.choices(WORDS[label], k=3), rng.choice(["please", "now"])]))
        labels.append(label)
    planted = set(rng.sample(range(150), wrong))
    for row in planted:
        labels[row] = next(label for label in WORDS if label != labels[row])
    return texts, labels, planted


def test_planted_errors_are_found_and_the_right_label_is_suggested() -> None:
    texts, labels, planted = noisy(8)
    doubts, note = suspected_label_errors(texts, labels)
    found = {doubt.row for doubt in doubts}
    assert found <= planted
    assert len(found) >= 6
    for doubt in doubts:
        assert set(texts[doubt.row].split()) & set(WORDS[doubt.suggestion])
    assert note == ""


def test_clean_labels_are_rarely_suspected() -> None:
    texts, labels, _ = noisy(0)
    assert suspected_label_errors(texts, labels) == ([], "")


def test_rare_labels_are_not_checked_and_that_is_said() -> None:
    texts, labels, _ = noisy(0)
    doubts, note = suspected_label_errors([*texts, "odd"], [*labels, "rare"])
    assert doubts == []
    assert note == "1 row of rare labels not checked"
    assert (
        suspected_label_errors(["a", "b"], ["x", "y"])[1]
        == "too few rows for each label to check any"
    )


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(RecipeError, match="install Choir with the extra `data`"):
        suspected_label_errors(["a"], ["x"])
