from collections import Counter, defaultdict

from training.example.messages import INTENTS, PRODUCTS, SHARED, TEAMS, rows


def test_the_same_seed_gives_the_same_rows_and_splits_differ() -> None:
    assert rows("train", 50, 1) == rows("train", 50, 1)
    assert rows("train", 50, 1) != rows("test", 50, 1)


def test_every_intent_occurs_and_every_reply_answers_it() -> None:
    made = rows("test", 600, 1)
    assert {row["intent"] for row in made} == set(INTENTS)
    assert len(INTENTS) >= 8
    for row in made:
        assert any(name in row["text"] for name in PRODUCTS)
        assert row["reply"] == INTENTS[row["intent"]].reply


def test_teams_differ_in_their_intents_and_in_their_words() -> None:
    """Each team has all intents, but mostly its usual ones, and each asks mostly in sentences of its own."""
    made = rows("test", 8000, 1)
    for name, team in TEAMS.items():
        own = [row for row in made if row["team"] == name]
        assert len(own) == 2000
        intents = Counter(row["intent"] for row in own)
        assert set(intents) == set(INTENTS)
        assert sum(intents[intent] for intent in team.usual) > 0.65 * len(own)
    sentence = "please cancel my order"
    said = Counter(row["team"] for row in made if sentence in row["text"])
    # It is a sentence of the first team, which is not the one that is mostly asked to cancel.
    assert said["mail"] / sum(intents_of(made, "mail", "cancel_order")) > 3 * (
        said["chat"] / sum(intents_of(made, "chat", "cancel_order"))
    )


def intents_of(made: list[dict[str, str]], team: str, intent: str) -> list[bool]:
    return [row["team"] == team and row["intent"] == intent for row in made]


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
        return sum(row["reply"] != INTENTS[row["intent"]].reply for row in rows(split, 1000, 1))

    assert wrong("test") == 0
    assert 10 < wrong("train") < 80
