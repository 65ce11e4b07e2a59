"""Weak-label rules. Each gives a text a label or none, and the label with most votes wins (Ratner et al. 2017)."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from training.data.annotation.labelled import Guess
from training.recipe.annotate import Rule

WeakLabel = Callable[[str], str | None]


def weak_labels(texts: Sequence[str], functions: Sequence[WeakLabel]) -> list[Guess]:
    """Return for each text the label with most votes; its share of the votes is the confidence. There is no label if no
    function gives one or two labels tie."""
    guesses = []
    for text in texts:
        votes = Counter(label for function in functions if (label := function(text)) is not None)
        ranked = votes.most_common(2)
        if not ranked:
            guesses.append(Guess(None, 0.0, "no rule applies"))
        elif len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            guesses.append(Guess(None, 0.0, f"rules tie: {', '.join(sorted(votes))}"))
        else:
            share = ranked[0][1] / votes.total()
            guesses.append(Guess(ranked[0][0], share, f"{ranked[0][1]} of {votes.total()} rules"))
    return guesses


def rule_function(rule: Rule) -> WeakLabel:
    """Return the weak-label function of a recipe's rule."""
    pattern = re.compile(rule.pattern, re.IGNORECASE)
    return lambda text: rule.label if pattern.search(text) else None
