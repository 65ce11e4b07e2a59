"""Votes over whole generated answers."""

import pytest

from serve.fusion.answers import normalise, vote_answers
from serve.fusion.errors import FusionError


@pytest.fixture
def vote(make_ensemble):
    def run(answers, weights=None, request=None, extract=None, scores=None):
        ensemble = make_ensemble(
            tuple(weights or [None] * len(answers)),
            labels=None,
            task="generation",
            method="vote",
            extract=extract,
        ).model_copy(update={"scores": {} if scores is None else {"members": scores}})
        return vote_answers(ensemble, answers, request)

    return run


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
