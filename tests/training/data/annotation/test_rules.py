from training.data.annotation.rules import rule_function, weak_labels
from training.recipe.annotate import Rule


def test_most_votes_win_and_a_tie_is_no_label() -> None:
    rules = [
        Rule(label="card", pattern=r"\bcard"),
        Rule(label="card", pattern="lost"),
        Rule(label="cash", pattern="atm|cash"),
    ]
    functions = [rule_function(rule) for rule in rules]
    texts = ["my CARD is lost at the ATM", "card or cash", "hello"]
    guesses = weak_labels(texts, functions)
    assert [(guess.label, guess.confidence) for guess in guesses] == [
        ("card", 2 / 3),
        (None, 0.0),
        (None, 0.0),
    ]
    assert guesses[1].reason == "rules tie: card, cash"
    assert guesses[2].reason == "no rule applies"
