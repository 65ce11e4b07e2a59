"""Chooses among whole generated answers: by a vote, the one that is most like the others, or by a learned ranker."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.fusion.errors import FusionError
from serve.fusion.labels.vote import TIE
from serve.fusion.members import Floats, check_weights
from serve.fusion.ranking.candidates import Candidates
from serve.fusion.ranking.likeness import likeness
from serve.fusion.ranking.ranker import Ranker
from serve.manifest import ANSWER_METHODS, AnswerMethod, Ensemble, Extract, TextMethod

MEMBER_SCORES = "members"
"""The key of a manifest's `scores` under which each member has its validation score."""


@dataclass(frozen=True)
class AnswerChoice:
    """Which of the members' answers is given. There is one of each member, in the manifest's order."""

    winner: int
    """Index of the member whose text is the answer: the first member that gave the winning answer."""
    share: float
    """How far the members agree, 0..1. Of a vote, the winner's share of all votes cast; of `mbr`, the winner's mean
    chrF; of `stack`, that to the others."""
    keys: tuple[str | None, ...]
    """The part of each member's answer that says whether two are the same; None for an answer in which the rule finds
    nothing. That member has no say."""


def answer_method(ensemble: Ensemble, method: str | None = None) -> AnswerMethod:
    """Returns the request's method, or else the manifest's. Raises FusionError if it fuses at every token or is not
    served for generation."""
    wanted = method or ensemble.fusion.method
    for each in ANSWER_METHODS:
        if wanted == each:
            return each
    raise FusionError(
        f"The method {wanted!r} does not choose among whole answers; {', '.join(ANSWER_METHODS)} do."
    )


def choose_answer(
    ensemble: Ensemble,
    answers: Sequence[str],
    method: TextMethod,
    weights: Mapping[str, float] | None = None,
) -> AnswerChoice:
    """Returns the answer that the method chooses, by the texts alone. Raises FusionError as the methods do."""
    return (mbr_answers if method == "mbr" else vote_answers)(ensemble, answers, weights)


def vote_answers(
    ensemble: Ensemble, answers: Sequence[str], weights: Mapping[str, float] | None = None
) -> AnswerChoice:
    """Returns the answer with the most votes. Weights are the request's, or else the manifest's.

    Two answers are equal if the manifest's `extract` finds the same text in both. An answer in which it finds nothing
    gets no vote; if it finds nothing in any of them, normalised whole texts are compared. A tie goes to the answer of
    the member with the best validation score in the manifest; without scores, or among equal ones, to that of the
    member with the largest weight, then to the one that comes first in the members' order. Raises FusionError if there
    is not one answer for each member, or if the weights are unsound."""
    values = _weights(ensemble, answers, weights)
    keys = _keys(answers, ensemble.fusion.extract)
    votes: dict[str, float] = {}
    for key, value in zip(keys, values, strict=True):
        if key is not None:
            votes[key] = votes.get(key, 0.0) + float(value)
    most = max(votes.values())
    tied = [place for place, key in enumerate(keys) if key is not None and votes[key] >= most - TIE]
    winner = keys[_strongest(ensemble, tied, values)]
    assert winner is not None, "an answer without a key has no vote"
    cast = sum(votes.values())
    share = votes[winner] / cast if cast else 0.0
    return AnswerChoice(winner=keys.index(winner), share=float(np.clip(share, 0, 1)), keys=keys)


def mbr_answers(
    ensemble: Ensemble, answers: Sequence[str], weights: Mapping[str, float] | None = None
) -> AnswerChoice:
    """Returns the answer with the least expected loss, that is, with the highest mean chrF to the members' answers
    (minimum Bayes risk: Kumar and Byrne 2004; chrF: Popović 2015, as sacrebleu computes it for a sentence).

    The mean is weighted by the request's weights, or else by the manifest's: they stand for how probable each member's
    answer is. It runs over all answers, the candidate's own too. With equal weights that changes no ranking; with
    others, a member with all the weight has its answer given, as in a vote.

    What is compared is what the manifest's `extract` finds. An answer in which it finds nothing is no candidate and has
    no say; if it finds nothing in any of them, whole texts are compared as they are written. An empty text has a chrF
    of 0 to every text. Ties are broken, and errors raised, as in a vote."""
    values = _weights(ensemble, answers, weights)
    texts = _found(answers, ensemble.fusion.extract) or tuple(answers)
    heard = [place for place, text in enumerate(texts) if text is not None]
    weight = values[heard]
    alike = likeness([text for text in texts if text is not None])
    means = alike @ weight / (weight.sum() or 1.0)
    tied = [place for place, mean in zip(heard, means, strict=True) if mean >= means.max() - TIE]
    winner = texts.index(texts[_strongest(ensemble, tied, values)])
    return AnswerChoice(
        winner=winner,
        share=float(np.clip(means[heard.index(winner)], 0, 1)),
        keys=_keys(answers, ensemble.fusion.extract),
    )


def ranked_answer(ensemble: Ensemble, ranker: Ranker, candidates: Candidates) -> AnswerChoice:
    """Returns the answer that the ranker scores highest. Ties are broken as in a vote."""
    scores = ranker.scores(candidates)
    tied = np.flatnonzero(scores >= scores.max() - TIE).tolist()
    winner = _strongest(ensemble, tied, np.asarray(ensemble.weights()))
    share = float(np.clip(candidates.agreement[winner], 0, 1))
    return AnswerChoice(winner, share, _keys(candidates.texts, None))


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


def extracted(text: str, extract: Extract) -> str | None:
    """Returns the part of a text that the rule names; None if it finds nothing."""
    match = re.search(extract.regex, text)
    return match.group(extract.group) if match else None


def normalise(answer: str) -> str:
    """Returns a text in NFKC and lower case, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", answer).lower().split())


def _weights(
    ensemble: Ensemble, answers: Sequence[str], weights: Mapping[str, float] | None
) -> Floats:
    """Returns the weights [M], which sum to 1. Raises FusionError if they are unsound, or if there is not one answer
    for each member."""
    names = [member.name for member in ensemble.members]
    if len(answers) != len(names):
        raise FusionError(f"There are {len(answers)} answers, but {len(names)} members.")
    given = dict(zip(names, ensemble.weights(), strict=True)) if weights is None else weights
    return check_weights(given, names)


def _strongest(ensemble: Ensemble, tied: Sequence[int], weights: Floats) -> int:
    """Returns which of the tied members wins: the one with the best validation score, else with the largest weight,
    else the first."""
    scores = member_scores(ensemble)
    strengths = [
        (scores.get(member.name, -math.inf), weight)
        for member, weight in zip(ensemble.members, weights, strict=True)
    ]
    return max(tied, key=lambda place: strengths[place])


def _keys(answers: Sequence[str], extract: Extract | None) -> tuple[str | None, ...]:
    return _found(answers, extract) or tuple(normalise(answer) for answer in answers)


def _found(answers: Sequence[str], extract: Extract | None) -> tuple[str | None, ...] | None:
    """Returns what the rule finds in each answer; None if there is no rule, or if it finds nothing in any of them."""
    if extract is None:
        return None
    found = tuple(extracted(answer, extract) for answer in answers)
    return None if all(key is None for key in found) else found
