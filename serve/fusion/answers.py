"""Voting over whole generated answers."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.fusion.errors import FusionError
from serve.fusion.labels.vote import TIE
from serve.fusion.members import check_weights
from serve.manifest import Ensemble, Extract

MEMBER_SCORES = "members"
"""The key of a manifest's `scores` under which each member has its validation score."""


@dataclass(frozen=True)
class AnswerVote:
    """The outcome of a vote over one answer of each member, in the manifest's order."""

    winner: int
    """Index of the member whose text is the answer: the first member that gave the winning answer."""
    share: float
    """The winner's share of all votes cast, 0..1."""
    keys: tuple[str | None, ...]
    """The part of each member's answer that was compared; None for an answer in which the rule finds nothing. That
    member has no vote."""


def vote_answers(
    ensemble: Ensemble, answers: Sequence[str], weights: Mapping[str, float] | None = None
) -> AnswerVote:
    """Returns the answer with the most votes. Weights are the request's, or else the manifest's.

    Two answers are equal if the manifest's `extract` finds the same text in both. An answer in which it finds nothing
    gets no vote; if it finds nothing in any of them, normalised whole texts are compared. A tie goes to the answer of
    the member with the best validation score in the manifest; without scores, or among equal ones, to that of the
    member with the largest weight, then to the one that comes first in the members' order. Raises FusionError if there
    is not one answer for each member, or if the weights are unsound."""
    names = [member.name for member in ensemble.members]
    if len(answers) != len(names):
        raise FusionError(f"There are {len(answers)} answers, but {len(names)} members.")
    given = dict(zip(names, ensemble.weights(), strict=True)) if weights is None else weights
    values = check_weights(given, names)
    keys = _keys(answers, ensemble.fusion.extract)
    votes: dict[str, float] = {}
    for key, value in zip(keys, values, strict=True):
        if key is not None:
            votes[key] = votes.get(key, 0.0) + float(value)
    most = max(votes.values())
    scores = member_scores(ensemble)
    strengths = [
        (scores.get(name, -math.inf), value) for name, value in zip(names, values, strict=True)
    ]
    tied = [place for place, key in enumerate(keys) if key is not None and votes[key] >= most - TIE]
    winner = keys[max(tied, key=lambda place: strengths[place])]
    assert winner is not None, "an answer without a key has no vote"
    cast = sum(votes.values())
    share = votes[winner] / cast if cast else 0.0
    return AnswerVote(winner=keys.index(winner), share=float(np.clip(share, 0, 1)), keys=keys)


def member_scores(ensemble: Ensemble) -> dict[str, float]:
    """Returns the validation scores of members that the manifest has, by name; higher is better."""
    stored = ensemble.scores.get(MEMBER_SCORES)
    if not isinstance(stored, dict):
        return {}
    return {name: float(score) for name, score in stored.items() if isinstance(score, (int, float))}


def same_answer(one: str, other: str, extract: Extract | None) -> bool:
    """Returns whether a vote counts two answers as the same."""
    first, second = _keys((one, other), extract)
    return first == second


def normalise(answer: str) -> str:
    """Returns a text in NFKC and lower case, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", answer).lower().split())


def _keys(answers: Sequence[str], extract: Extract | None) -> tuple[str | None, ...]:
    if extract is not None:
        found = tuple(_extracted(answer, extract) for answer in answers)
        if any(key is not None for key in found):
            return found
    return tuple(normalise(answer) for answer in answers)


def _extracted(answer: str, extract: Extract) -> str | None:
    match = re.search(extract.regex, answer)
    return match.group(extract.group) if match else None
