"""Choices among whole generated answers."""

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from serve.fusion.answers import (
    answer_method,
    choose_answer,
    mbr_answers,
    normalise,
    vote_answers,
)
from serve.fusion.errors import FusionError

PARCEL = [
    "Your parcel is on its way and should arrive on Friday.",
    "The weather is fine.",
    "Your parcel is on its way, it should arrive by Friday.",
    "It is on its way.",
]


@pytest.fixture
def choose(make_ensemble):
    def run(method, answers, weights=None, request=None, extract=None, scores=None):
        ensemble = make_ensemble(
            tuple(weights or [None] * len(answers)),
            labels=None,
            task="generation",
            method=method,
            extract=extract,
        ).model_copy(update={"scores": {} if scores is None else {"members": scores}})
        return choose_answer(ensemble, answers, answer_method(ensemble), request)

    return run


@pytest.fixture
def vote(choose):
    return lambda *given, **fields: choose("vote", *given, **fields)


@pytest.fixture
def mbr(choose):
    return lambda *given, **fields: choose("mbr", *given, **fields)


def means_of_sacrebleu(answers, weights):
    """The weighted mean chrF of each answer to all answers, pair by pair."""
    metric = CHRF()
    pairs = [[metric.sentence_score(one, [other]).score for other in answers] for one in answers]
    return np.average(pairs, axis=1, weights=weights) / 100


def test_the_majority_wins_and_its_first_text_is_the_answer(vote):
    outcome = vote(["No.", "Yes,  please", "yes, PLEASE\n"])
    assert outcome.winner == 1
    assert outcome.share == pytest.approx(2 / 3)


def test_texts_are_compared_in_compatibility_form():
    assert normalise(" \ufb01ne\u00a0 \u2460\tOK ") == "fine 1 ok"


def test_a_tie_goes_to_the_member_that_was_best_on_the_validation_rows(vote):
    assert vote(["b", "a"], scores={"m0": 12.5, "m1": 30}).winner == 1
    assert vote(["b", "a"], scores={"m0": 30, "m1": 12.5}).winner == 0
    scores = {"m0": 9, "m1": 1, "m2": 2, "m3": 3, "m4": 2}
    assert vote(["c", "a", "b", "a", "b"], scores=scores).winner == 1, "m0's answer is in no tie"
    assert vote(["a", "a", "b"], scores={"m2": 99}).winner == 0, "no tie"
    assert vote(["b", "a"], weights=(1, 1), scores={"m1": 1}).winner == 1, "m0 was never judged"
    assert vote(["a", "b", "b"], weights=(2, 1.5, 0.5), scores={}).winner == 0


def test_a_tie_without_scores_goes_to_the_first_member(vote):
    assert vote(["b", "a"]).winner == 0
    assert vote(["c", "a", "b", "a", "b"]).winner == 1
    assert vote(["b", "a", "a"], weights=(1.4, 0.1, 1.3)).winner == 0


def test_weights_decide_the_requests_before_the_manifests(vote):
    assert vote(["a", "b", "b"], weights=(0.6, 0.2, 0.2)).winner == 0
    request = {"m0": 1.0, "m1": 1.0, "m2": 1.0}
    assert vote(["a", "b", "b"], weights=(0.6, 0.2, 0.2), request=request).winner == 1
    with pytest.raises(FusionError, match="no member 'x'"):
        vote(["a", "b", "b"], request=request | {"x": 1.0})


def test_a_regular_expression_says_what_is_compared(vote):
    answers = ["so it is 42 or 7", "it must be 7", "The total: 42."]
    outcome = vote(answers, extract={"regex": r"\d+"})
    assert outcome.keys == ("42", "7", "42")
    assert outcome.winner == 0
    named = vote(answers, extract={"regex": r"(?:is|be|total:) (?P<n>\d+)", "group": "n"})
    assert named.keys == ("42", "7", "42")


def test_an_answer_without_a_match_has_no_vote(vote):
    outcome = vote(["none", "none", "1"], extract={"regex": r"\d"})
    assert outcome.winner == 2
    assert outcome.share == 1
    assert outcome.keys == (None, None, "1")


def test_a_group_that_took_no_part_in_the_match_has_no_vote(vote):
    outcome = vote(["b", "b", "a1"], extract={"regex": r"b|a(\d)", "group": 1})
    assert outcome.keys == (None, None, "1")


def test_if_nothing_matches_whole_texts_are_compared(vote):
    outcome = vote(["x", "Y", "y"], extract={"regex": r"\d"})
    assert (outcome.winner, outcome.keys) == (1, ("x", "y", "y"))


def test_one_answer_of_each_member(vote, make_ensemble):
    ensemble = make_ensemble(labels=None, task="generation", method="vote")
    with pytest.raises(FusionError, match="2 answers, but 3 members"):
        vote_answers(ensemble, ["a", "b"])


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0.1, 0.1, 0.1, 0.7), (0, 5, 1, 1)])
def test_mbr_gives_the_answer_that_is_most_like_all_of_them(mbr, weights):
    expected = means_of_sacrebleu(PARCEL, weights)
    outcome = mbr(PARCEL, weights=weights)
    assert outcome.winner == expected.argmax()
    assert outcome.share == pytest.approx(expected.max())


def test_with_equal_weights_mbr_ranks_by_the_others_answers_alone(mbr):
    metric = CHRF()
    others = [
        np.mean([metric.sentence_score(one, [other]).score for other in PARCEL if other != one])
        for one in PARCEL
    ]
    assert mbr(PARCEL).winner == np.argmax(others) == 2


def test_mbr_finds_what_a_vote_over_different_answers_cannot(vote, mbr):
    assert vote(PARCEL[1:] + PARCEL[:1]).winner == 0, "no two are equal, so the first one wins"
    assert PARCEL[1:][mbr(PARCEL[1:] + PARCEL[:1]).winner] == PARCEL[2]


def test_identical_answers_win_by_mbr_and_the_first_is_named(mbr):
    outcome = mbr(["zzz", "Yes", "Yes"])
    assert outcome.winner == 1
    assert outcome.share == pytest.approx(2 / 3)
    assert outcome.keys == ("zzz", "yes", "yes")
    assert mbr(["Yes", "Yes"], scores={"m1": 1}).winner == 0, (
        "the same text, by whom does not matter"
    )
    assert mbr(["Yes", "Yes"]).share == 1


def test_an_empty_answer_wins_by_mbr_only_among_empty_ones(mbr):
    outcome = mbr(["", " ", "Yes"])
    assert (outcome.winner, outcome.share) == (2, pytest.approx(1 / 3))
    assert (mbr(["", ""]).winner, mbr(["", ""]).share) == (0, 0)


def test_one_member_gives_its_own_answer(mbr):
    assert (mbr(["Yes"]).winner, mbr(["Yes"]).share) == (0, 1)
    assert (mbr([""]).winner, mbr([""]).share) == (0, 0)


def test_a_tie_of_mbr_is_broken_as_in_a_vote(mbr):
    assert mbr(["bbb", "aaa"]).winner == 0
    assert mbr(["bbb", "aaa"], scores={"m0": 12.5, "m1": 30}).winner == 1
    assert mbr(["zz", "aaa", "bbb", "aaa", "bbb"]).winner == 1
    scores = {"m0": 9, "m1": 1, "m2": 2, "m3": 3, "m4": 2}
    assert mbr(["zz", "bbb", "aaa", "bbb", "aaa"], scores=scores).winner == 1
    assert mbr(["", ""], weights=(1, 3)).winner == 0


def test_weights_of_mbr_are_the_requests_before_the_manifests(mbr):
    answers = ["aaa", "bbb", "bbb"]
    assert mbr(answers, weights=(0.6, 0.2, 0.2)).winner == 0
    request = {"m0": 1.0, "m1": 1.0, "m2": 1.0}
    assert mbr(answers, weights=(0.6, 0.2, 0.2), request=request).winner == 1
    alone = mbr(PARCEL, request={"m0": 0, "m1": 1, "m2": 0, "m3": 0})
    assert (alone.winner, alone.share) == (1, 1), "the only member that counts is given"
    with pytest.raises(FusionError, match="no member 'x'"):
        mbr(answers, request=request | {"x": 1.0})
    with pytest.raises(FusionError, match="at least 0"):
        mbr(answers, request=request | {"m0": -1.0})


def test_mbr_compares_what_the_regular_expression_finds(mbr):
    answers = ["it is surely not 7", "it is surely not 42", "Forty-two: 42", "no idea"]
    outcome = mbr(answers, extract={"regex": r"\d+"})
    assert outcome.winner == 1
    assert outcome.keys == ("7", "42", "42", None)
    assert outcome.share == pytest.approx(2 / 3), "an answer without a match has no say"
    silent = mbr(answers, extract={"regex": r"\d+"}, weights=(0, 0, 0, 1))
    assert (silent.winner, silent.share) == (0, 0)
    whole = mbr(PARCEL, extract={"regex": "nothing"})
    assert whole.winner == mbr(PARCEL).winner
    assert whole.share == mbr(PARCEL).share


def test_mbr_needs_one_answer_of_each_member(make_ensemble):
    ensemble = make_ensemble(labels=None, task="generation", method="mbr")
    with pytest.raises(FusionError, match="2 answers, but 3 members"):
        mbr_answers(ensemble, ["a", "b"])


def test_a_method_that_fuses_at_every_token_chooses_no_answer(make_ensemble):
    ensemble = make_ensemble(labels=None, task="generation", method="average")
    assert answer_method(ensemble, "mbr") == "mbr"
    with pytest.raises(FusionError, match=r"'average' does not choose .*; vote, mbr, stack do"):
        answer_method(ensemble)
