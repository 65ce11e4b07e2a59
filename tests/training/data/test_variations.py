"""Unlabelled texts near the labelled ones."""

from training.data.variations import variations

TEXTS = ["my card is lost since monday", "where is it", "help"]


def test_variations_are_made_of_the_words_of_one_or_two_texts() -> None:
    made = variations(TEXTS, 40, seed=1)
    assert len(made) == 40 * len(TEXTS)
    words = [text.split() for text in TEXTS]
    for number, text in enumerate(made):
        own = words[number // 40]
        assert text
        assert any(subsequence(text.split(), [*own, *other]) for other in words)
    # Both ways occur: words left out, and the beginning of one text with the end of another.
    assert any(subsequence(text.split(), words[0]) and len(text.split()) < 6 for text in made[:40])
    assert "my card is it" in made[:40] or any("card" in t and "help" in t for t in made[:40])


def test_the_same_seed_gives_the_same_variations() -> None:
    assert variations(TEXTS, 5, seed=1) == variations(TEXTS, 5, seed=1)
    assert variations(TEXTS, 5, seed=1) != variations(TEXTS, 5, seed=2)


def subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)
