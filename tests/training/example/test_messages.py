from collections import defaultdict

from training.example.messages import INTENTS, PRODUCTS, SHARED, rows


def test_the_same_seed_gives_the_same_rows_and_splits_differ() -> None:
    assert rows("train", 50, 1) == rows("train", 50, 1)
    assert rows("train", 50, 1) != rows("test", 50, 1)


def test_every_intent_occurs_and_every_reply_answers_the_product_of_its_text() -> None:
    made = rows("test", 600, 1)
    assert {row["intent"] for row in made} == set(INTENTS)
    assert len(INTENTS) >= 8
    for row in made:
        [product] = [name for name in PRODUCTS if name in row["text"]]
        assert row["reply"] == INTENTS[row["intent"]].reply.format(product=product)


def test_shared_sentences_are_said_under_both_of_their_intents() -> None:
    meant: dict[str, set[str]] = defaultdict(set)
    for row in rows("test", 6000, 1):
        for sentence, _ in SHARED:
            if "{" not in sentence and sentence in row["text"]:
                meant[sentence].add(row["intent"])
    assert meant
    assert all(meant[sentence] == set(both) for sentence, both in SHARED if sentence in meant)


def test_only_training_labels_are_sometimes_wrong() -> None:
    def wrong(split: str) -> int:
        made = rows(split, 1000, 1)
        return sum(
            all(
                row["reply"] != INTENTS[row["intent"]].reply.format(product=name)
                for name in PRODUCTS
            )
            for row in made
        )

    assert wrong("test") == 0
    assert 10 < wrong("train") < 80
