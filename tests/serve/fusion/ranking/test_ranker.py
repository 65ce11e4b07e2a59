"""A learned ranker of whole answers, beside scikit-learn's own estimator and sacrebleu's chrF."""

import json
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import CHRF
from sklearn.linear_model import Ridge

from serve.fusion.answers import ranked_answer
from serve.fusion.errors import FusionError, StaleFusionError
from serve.fusion.ranking.candidates import Candidates, same_texts
from serve.fusion.ranking.ranker import PENALTIES, Ranker
from serve.manifest import Ensemble

ROWS, MEMBERS = 120, 3
STACK = {"method": "stack", "model": "linear_regression", "parameters": "fusion/x/stack.json"}


@pytest.fixture
def talk(make_ensemble) -> Ensemble:
    return make_ensemble(labels=None, task="generation", **STACK)


@pytest.fixture
def made() -> tuple[list[Candidates], np.ndarray]:
    """Rows in which the second member alone knows which answer is good: it finds that one likely. Lengths, texts and
    the other members say nothing."""
    rng = np.random.default_rng(0)
    rows = []
    good = rng.random((ROWS, MEMBERS))
    for row in range(ROWS):
        words = rng.choice(list("abcdefgh"), size=(MEMBERS, 6))
        tokens = rng.integers(5, 9, MEMBERS)
        log_probs = rng.normal(-2, 0.5, (MEMBERS, MEMBERS))
        log_probs[1] = good[row] - 2
        rows.append(
            Candidates([" ".join(each) for each in words], tokens.tolist(), log_probs * tokens)
        )
    return rows, good


def columns(each: Candidates) -> np.ndarray:
    """The features, each computed by its definition: [M, F], then who wrote it [M, M]."""
    judge = CHRF()
    rows = []
    for place, text in enumerate(each.texts):
        others = [other for number, other in enumerate(each.texts) if number != place]
        alike = [judge.sentence_score(text, [other]).score / 100 for other in others]
        own = [row[place] / each.tokens[place] for row in each.log_probs]
        wrote = [float(number == place) for number in range(len(each.texts))]
        rows.append([*own, np.log(each.tokens[place]), np.mean(alike), *wrote])
    return np.array(rows)


def test_the_ranker_finds_the_best_answer_where_it_can_be_told(made, talk) -> None:
    rows, good = made
    ranker = Ranker.fit(rows[:80], good[:80], talk)
    winners = [ranked_answer(talk, ranker, each).winner for each in rows[80:]]
    assert np.mean(winners == good[80:].argmax(axis=1)) > 0.95


def test_the_coefficients_are_those_of_scikit_learns_ridge(made, talk) -> None:
    rows, good = made
    design = np.stack([columns(each) for each in rows])
    centred = (design - design.mean(axis=1, keepdims=True)).reshape(ROWS * MEMBERS, -1)
    target = (good - good.mean(axis=1, keepdims=True)).ravel()
    scale = centred.std(axis=0)
    ranker = Ranker.fit(rows, good, talk)
    found = np.array([*ranker.parameters.coefficients, *ranker.parameters.bonus])
    fits = [
        Ridge(alpha=alpha, fit_intercept=False).fit(centred / scale, target).coef_ / scale
        for alpha in PENALTIES
    ]
    closest = min(np.abs(found - each).max() for each in fits)
    assert closest < 1e-6
    for each in rows[:5]:
        expected = columns(each) @ found
        np.testing.assert_allclose(ranker.scores(each), expected, atol=1e-9)


def test_a_file_gives_the_same_answers_and_is_bound_to_the_adapters(
    made, talk, make_ensemble, tmp_path: Path
) -> None:
    rows, good = made
    ranker = Ranker.fit(rows, good, talk)
    file = tmp_path / "stack.json"
    ranker.write(file)
    assert set(json.loads(file.read_text())) > {"coefficients", "bonus", "digests", "members"}
    read = Ranker.from_manifest(talk, file)
    assert read is not None
    np.testing.assert_array_equal(read.scores(rows[0]), ranker.scores(rows[0]))

    swapped = make_ensemble(labels=None, task="generation", changed=(1,), **STACK)
    with pytest.raises(StaleFusionError, match="other adapters than those of m1"):
        Ranker.from_manifest(swapped, file)
    allowed = Ranker.from_manifest(swapped, file, allow_stale=True)
    assert allowed is not None
    assert allowed.is_stale(swapped)
    averaging = make_ensemble(
        labels=None, task="generation", changed=(1,), **(STACK | {"method": "average"})
    )
    assert Ranker.from_manifest(averaging, file) is None, "requests cannot choose it either"
    smaller = make_ensemble((None, None), labels=None, task="generation", **STACK)
    with pytest.raises(FusionError, match=r"fitted on the members m0, m1, m2, not on m0, m1"):
        Ranker.from_manifest(smaller, file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coefficients", [1.0]),
        ("bonus", [0.0, 0.0]),
        ("bonus", [0.0, 0.0, "x"]),
        ("task", "classification"),
        ("digests", []),
        ("more", 1),
    ],
)
def test_a_file_that_holds_no_ranker_is_refused(
    made, talk, tmp_path: Path, field: str, value: object
) -> None:
    rows, good = made
    file = tmp_path / "stack.json"
    Ranker.fit(rows, good, talk).write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(FusionError, match=r"stack.json is not a fitted stacker"):
        Ranker.from_manifest(talk, file)


def test_equal_scores_go_to_the_member_that_was_best_in_validation(talk) -> None:
    same = Candidates(["yes", "no", "so"], [1, 1, 1], np.zeros((3, 3)))
    ranker = Ranker.fit([same], [[0.5, 0.5, 0.5]], talk)
    scored = talk.model_copy(update={"scores": {"members": {"m0": 1, "m1": 3, "m2": 2}}})
    assert ranked_answer(scored, ranker, same).winner == 1
    assert ranked_answer(talk, ranker, same).winner == 0


def test_what_is_not_finite_is_no_evidence(made, talk) -> None:
    rows, good = made
    with pytest.raises(FusionError, match="finite"):
        Ranker.fit(rows, np.where(good > 0.5, np.nan, good), talk)
    with pytest.raises(FusionError, match="quality of each member"):
        Ranker.fit(rows, good[:, :2], talk)


def test_an_answer_that_no_member_can_score_does_not_win(made, talk) -> None:
    rows, good = made
    ranker = Ranker.fit(rows, good, talk)
    best = ranked_answer(talk, ranker, rows[0]).winner
    for number in (-np.inf, np.nan):
        log_probs = rows[0].log_probs.copy()
        log_probs[0, best] = number
        each = Candidates(rows[0].texts, rows[0].tokens, log_probs)
        assert ranked_answer(talk, ranker, each).winner != best
        none = Candidates(rows[0].texts, rows[0].tokens, np.full((3, 3), number))
        assert ranked_answer(talk, ranker, none).winner == 0


def test_an_empty_answer_and_many_members_can_be_ranked(make_ensemble) -> None:
    rng = np.random.default_rng(1)
    count = 20
    many = make_ensemble((None,) * count, labels=None, task="generation", **STACK)
    texts = ["", *(f"answer {number}" for number in range(1, count))]
    rows = [
        Candidates(texts, [0, *[2] * (count - 1)], rng.normal(-3, 1, (count, count)))
        for _ in range(12)
    ]
    ranker = Ranker.fit(rows, rng.random((12, count)), many)
    assert len(ranker.parameters.coefficients) == 16
    assert np.isfinite(ranker.scores(rows[0])).all()


def test_space_around_answers_makes_no_difference() -> None:
    assert same_texts([" yes", "yes\n"])
    assert not same_texts(["yes", "Yes"])
