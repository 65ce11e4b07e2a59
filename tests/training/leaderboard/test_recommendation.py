"""The recommendation: the cheapest rung that is not significantly worse than the best or than the best member."""

import numpy as np
import pytest
from scipy import stats

from training.evaluation.metrics.resampling import Comparison, mean_over_rows
from training.leaderboard.board import RungKind
from training.leaderboard.recommendation import Candidate, Choice, Recommendation

ROWS = 400
BY = ("log_loss", "accuracy")
NOISE = np.random.default_rng(0).normal(0, 0.3, ROWS)
"""What all rungs find difficult or easy."""


def rung(
    name: str,
    kind: RungKind,
    passes: float,
    loss: float | None,
    right: float = 0.9,
    milliseconds: float | None = None,
) -> Candidate:
    """A rung with this mean loss, and this share of right rows."""
    own = np.random.default_rng(sum(map(ord, name))).normal(0, 0.1, ROWS)
    metrics = {"accuracy": mean_over_rows(np.arange(ROWS) < right * ROWS)}
    if loss is not None:
        metrics["log_loss"] = mean_over_rows(loss + NOISE + own - own.mean())
    return Candidate(name, name, kind, passes, milliseconds, metrics)


def chosen(*rungs: Candidate) -> Recommendation:
    return Choice(rungs, ROWS, BY).recommendation()


def test_an_ensemble_that_gains_is_recommended_and_one_that_does_not_is_not() -> None:
    found = chosen(rung("single", "single", 1, 0.5), rung("average", "fusion", 4, 0.4))
    assert (found.recommended, found.best) == ("average", "average")
    assert (
        "the best member, chosen for each part of the rows on the others, is worse (+0.1000 log loss, p = 0.001)"
        in found.reason
    )

    found = chosen(rung("single", "single", 1, 0.4), rung("average", "fusion", 4, 0.399))
    assert (found.recommended, found.best) == ("single", "average")
    assert found.reason.startswith("Do not ensemble: on 400 validation rows, single is not")


def test_of_rungs_that_are_as_good_the_cheapest_is_recommended() -> None:
    rungs = [
        rung("single", "single", 1, 0.5),
        rung("average", "fusion", 4, 0.401),
        rung("stack", "fusion", 4, 0.4),
        rung("early", "fusion", 1.6, 0.402),
        rung("cat", "merged", 1, 0.405),
    ]
    assert chosen(*rungs).recommended == "cat"
    assert chosen(*rungs[:-1]).recommended == "early"
    assert chosen(*rungs[:-2]).recommended == "stack", "among equal costs, the best"


def test_a_rung_that_takes_longer_at_as_many_passes_is_the_dearer_one() -> None:
    single = rung("single", "single", 1, 0.4, milliseconds=5.0)
    assert chosen(single, rung("cat", "merged", 1, 0.399, milliseconds=9.0)).recommended == "single"
    assert chosen(single, rung("cat", "merged", 1, 0.399, milliseconds=5.1)).recommended == "cat"


def test_worse_in_the_second_metric_is_worse() -> None:
    single = rung("single", "single", 1, 0.5, right=0.95)
    average = rung("average", "fusion", 4, 0.4, right=0.85)
    found = chosen(single, average)
    assert (found.recommended, found.best) == ("single", "average")


def test_a_single_member_without_being_chosen_and_a_vote_without_loss_are_no_candidates() -> None:
    lucky = rung("lucky", "member", 1, 0.1)
    vote = rung("vote", "fusion", 4, None, right=1.0)
    assert chosen(rung("single", "single", 1, 0.5), lucky, vote).recommended == "single"


@pytest.mark.parametrize("gap", [0.002, 0.01, 0.02])
def test_the_p_of_a_difference_is_near_that_of_the_paired_t_test(gap: float) -> None:
    """Over 400 rows, means are nearly normal, so the bootstrap and scipy's test agree."""
    random = np.random.default_rng(1)
    one = random.normal(0.4, 0.3, ROWS)
    other = one + gap + random.normal(0, 0.1, ROWS)
    metrics = [{"loss": mean_over_rows(values)} for values in (one, other)]
    p = Comparison(metrics, ROWS).gap("loss", 1, [0]).p
    assert p == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=0.03)
